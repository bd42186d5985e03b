// How a weight matrix [rows, cols] lies in memory for the kernels: tiles of 16 rows, one lane a
// row, so that a thread reads one sequential stream.
//   F32:  tile = cols x 16 floats.
//   Q8:   tile = groups of 32 columns; a group = 16 half scales, then 8 quads of 16 rows x 4
//         int8 (4 consecutive columns of one row side by side): 544 bytes.
//   Rows: tile = 16 rows as they lie in a file, one after the other; every other type.
// Rows that fill up the last tile are zero.
// Plain data only: kernel files are compiled for newer processors, and an inline function that
// they shared with other files could be linked into those.
// Read next: kernels/matmul_inl.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace miudo {

constexpr std::size_t kTileRows = 16;
constexpr std::size_t kGroup = 32;  // columns that share a scale in Q8_0
constexpr std::size_t kGroupBytes = kTileRows * 2 + kTileRows * kGroup;

// How numbers lie in files; the values are those of miudo.h.
enum class DType : int {
  kF32, kF16, kBF16, kQ8_0, kQ4_0, kQ4_1, kQ5_0, kQ5_1, kQ2_K, kQ3_K, kQ4_K, kQ5_K, kQ6_K,
  kIQ4_NL, kIQ4_XS, kMXFP4
};

struct BlockShape {
  std::size_t values, bytes;
};

// By DType, as miudo/tensors.py has them.
constexpr BlockShape kBlocks[] = {{1, 4},     {1, 2},     {1, 2},     {32, 34},
                                  {32, 18},   {32, 20},   {32, 22},   {32, 24},
                                  {256, 84},  {256, 110}, {256, 144}, {256, 176},
                                  {256, 210}, {32, 18},   {256, 136}, {32, 17}};
constexpr std::int32_t kDTypes = sizeof(kBlocks) / sizeof(kBlocks[0]);

struct Packed {
  const std::uint8_t* data = nullptr;
  std::size_t rows = 0, cols = 0;
  std::size_t tile_bytes = 0;
  DType type = DType::kF32;
};

}  // namespace miudo
