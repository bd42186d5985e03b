// A weight matrix that owns its packed bytes; rows can be read back, for embeddings.
// For: one copy of a tied embedding and head. Not for: arithmetic.
// Read next: kernels/packed.h for the layout, kernels/kernels.h for what computes on it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/packed.h"
#include "util/buffer.h"

namespace miudo {

enum class Packing { kF32, kQ8, kRows };

// Bytes of `rows` rows of `cols` values; 0 if cols are no whole blocks of `type`.
std::size_t stored_bytes(DType type, std::size_t rows, std::size_t cols);

// Widens `count` stored values (whole blocks) to float.
void to_float(DType type, const std::uint8_t* bytes, std::size_t count, float* out);

class PackedMatrix {
 public:
  PackedMatrix() = default;
  // `bytes` holds stored_bytes(type, rows, cols) bytes, row after row; no number is changed.
  PackedMatrix(DType type, std::size_t rows, std::size_t cols, const std::uint8_t* bytes);

  const Packed& view() const { return view_; }
  std::size_t rows() const { return view_.rows; }
  std::size_t cols() const { return view_.cols; }
  std::size_t tiles() const { return (view_.rows + kTileRows - 1) / kTileRows; }
  Packing packing() const { return packing_; }
  std::size_t size_bytes() const { return data_.size(); }

  // Writes the dequantised row [cols].
  void read_row(std::size_t row, float* out) const;

 private:
  void pack_f32(const std::uint8_t* bytes);
  void pack_q8(const std::uint8_t* bytes);

  Packed view_;
  Packing packing_ = Packing::kF32;
  Buffer<std::uint8_t> data_;
};

}  // namespace miudo
