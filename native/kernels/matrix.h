// A weight matrix, packed; rows can be read back, for embeddings.
// For: one copy of a tied embedding and head. Not for: arithmetic.
// Read next: kernels/packed.h for the layout, kernels/kernels.h for what computes on it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/packed.h"
#include "util/buffer.h"

namespace miudo {

// Bytes of `rows` rows of `cols` values; 0 if cols are no whole blocks of `type`, which is no
// sparse one.
std::size_t stored_bytes(DType type, std::size_t rows, std::size_t cols);

// The same of any type: of sparse ones, by the masks among the `size` bytes there are; where these
// end early, what lies before the numbers.
std::size_t wanted_bytes(DType type, std::size_t rows, std::size_t cols, const std::uint8_t* bytes,
                         std::size_t size);

constexpr std::size_t tiles_of(std::size_t rows) { return (rows + kTileRows - 1) / kTileRows; }

// Bytes of the same matrix in tiles: whole cache lines. `bytes` are looked at if it is sparse;
// `masks` is whether tiles of masks can be multiplied (Kernels::has_masks).
std::size_t packed_bytes(DType type, std::size_t rows, std::size_t cols, const std::uint8_t* bytes,
                         bool masks);

// Widens `count` stored values (whole blocks) to float.
void to_float(DType type, const std::uint8_t* bytes, std::size_t count, float* out);

class PackedMatrix {
 public:
  PackedMatrix() = default;
  // In `space` of packed_bytes(type, rows, cols, bytes, masks), on a cache line, which is the
  // caller's; pack() fills it. A sparse one must be of the wanted_bytes.
  PackedMatrix(std::uint8_t* space, DType type, std::size_t rows, std::size_t cols,
               const std::uint8_t* bytes, bool masks);
  // In space of its own; `bytes` holds wanted_bytes, of dense types row after row.
  PackedMatrix(DType type, std::size_t rows, std::size_t cols, const std::uint8_t* bytes,
               bool masks = false);

  // Fills the tiles [begin, end) from the rows of the whole matrix; no number is changed. Tiles
  // may be packed from several threads.
  void pack(const std::uint8_t* bytes, std::size_t begin, std::size_t end);

  const Packed& view() const { return view_; }
  // As it lies in memory: a matrix that is stored sparse may be dense there.
  DType type() const { return view_.type; }
  std::size_t rows() const { return view_.rows; }
  std::size_t cols() const { return view_.cols; }
  std::size_t tiles() const { return tiles_of(view_.rows); }
  std::size_t size_bytes() const { return tiles() * view_.tile_bytes; }
  // Of one that is stored sparse: the number in the file of the first one of a tile, and of all.
  std::size_t first_number(std::size_t tile) const { return first_numbers_[tile]; }

  // Writes the dequantised row [cols]; of a sparse matrix slowly.
  void read_row(std::size_t row, float* out) const;

 private:
  void plan(std::uint8_t* space, DType type, std::size_t rows, std::size_t cols,
            const std::uint8_t* bytes, bool masks);

  Packed view_;
  DType stored_ = DType::kF32;
  std::vector<std::size_t> first_numbers_;  // by tile, of one that is stored sparse
  std::uint8_t* space_ = nullptr;
  Buffer<std::uint8_t> own_;
};

}  // namespace miudo
