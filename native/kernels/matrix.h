// A weight matrix that owns its packed bytes; rows can be read back, for embeddings.
// For: one copy of a tied embedding and head. Not for: arithmetic.
// Read next: kernels/packed.h for the layout, kernels/kernels.h for what computes on it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/packed.h"
#include "util/buffer.h"

namespace miudo {

// Bytes of `rows` rows of `cols` values; 0 if cols are no whole blocks of `type`.
std::size_t stored_bytes(DType type, std::size_t rows, std::size_t cols);

// Widens `count` stored values (whole blocks) to float.
void to_float(DType type, const std::uint8_t* bytes, std::size_t count, float* out);

class PackedMatrix {
 public:
  PackedMatrix() = default;
  // Space for a matrix; pack() fills it.
  PackedMatrix(DType type, std::size_t rows, std::size_t cols);
  // `bytes` holds stored_bytes(type, rows, cols) bytes, row after row.
  PackedMatrix(DType type, std::size_t rows, std::size_t cols, const std::uint8_t* bytes)
      : PackedMatrix(type, rows, cols) {
    pack(bytes, 0, tiles());
  }

  // Fills the tiles [begin, end) from the rows of the whole matrix; no number is changed. Tiles
  // may be packed from several threads.
  void pack(const std::uint8_t* bytes, std::size_t begin, std::size_t end);

  const Packed& view() const { return view_; }
  DType type() const { return view_.type; }
  std::size_t rows() const { return view_.rows; }
  std::size_t cols() const { return view_.cols; }
  std::size_t tiles() const { return (view_.rows + kTileRows - 1) / kTileRows; }
  std::size_t size_bytes() const { return data_.size(); }

  // Writes the dequantised row [cols].
  void read_row(std::size_t row, float* out) const;

 private:
  Packed view_;
  Buffer<std::uint8_t> data_;
};

}  // namespace miudo
