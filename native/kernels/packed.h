// How a weight matrix [rows, cols] lies in memory for the kernels: tiles of 16 rows, one lane a
// row, so that a thread reads one sequential stream.
//   F32:  tile = cols x 16 floats.
//   Q8:   tile = groups of 32 columns; a group = 16 half scales, then 8 quads of 16 rows x 4
//         int8 (4 consecutive columns of one row side by side): 544 bytes.
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

struct Packed {
  const std::uint8_t* data = nullptr;
  std::size_t rows = 0, cols = 0;
  std::size_t tile_bytes = 0;
};

}  // namespace miudo
