#include "kernels/matrix.h"

#include <cstring>

// Rows are read back on the lanes of any processor.
#include "kernels/simd_portable.h"
//
#include "kernels/dequantize_inl.h"

namespace miudo {
namespace {

constexpr std::size_t kBlockBytes = 34;  // a Q8_0 block in a file: half scale, 32 int8

template <typename T>
T read(const std::uint8_t* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(T));
  return value;
}

// Where column `col` of lane `lane` lies behind the scales of a group.
std::size_t quant_offset(std::size_t lane, std::size_t col) {
  return kTileRows * 2 + (col / 4) * kTileRows * 4 + lane * 4 + col % 4;
}

}  // namespace

std::size_t stored_bytes(DType type, std::size_t rows, std::size_t cols) {
  const BlockShape shape = kBlocks[static_cast<std::size_t>(type)];
  return cols % shape.values != 0 ? 0 : rows * (cols / shape.values) * shape.bytes;
}

void to_float(DType type, const std::uint8_t* bytes, std::size_t count, float* out) {
  dequantize(type, bytes, count, out);
}

PackedMatrix::PackedMatrix(DType type, std::size_t rows, std::size_t cols,
                           const std::uint8_t* bytes) {
  view_ = {nullptr, rows, cols, kTileRows * stored_bytes(type, 1, cols), type};
  packing_ = Packing::kRows;
  if (type == DType::kF32) packing_ = Packing::kF32;
  if (type == DType::kQ8_0) packing_ = Packing::kQ8;
  data_ = Buffer<std::uint8_t>(tiles() * view_.tile_bytes);
  view_.data = data_.data();
  switch (packing_) {
    case Packing::kF32: pack_f32(bytes); break;
    case Packing::kQ8: pack_q8(bytes); break;
    case Packing::kRows: std::memcpy(data_.data(), bytes, stored_bytes(type, rows, cols)); break;
  }
}

void PackedMatrix::pack_f32(const std::uint8_t* bytes) {
  for (std::size_t r = 0; r < rows(); ++r) {
    std::uint8_t* at = data_.data() + r / kTileRows * view_.tile_bytes + r % kTileRows * 4;
    for (std::size_t c = 0; c < cols(); ++c, bytes += 4) {
      std::memcpy(at + c * kTileRows * 4, bytes, 4);
    }
  }
}

void PackedMatrix::pack_q8(const std::uint8_t* bytes) {
  const std::size_t groups = cols() / kGroup;
  for (std::size_t r = 0; r < rows(); ++r) {
    const std::size_t lane = r % kTileRows;
    std::uint8_t* to = data_.data() + r / kTileRows * view_.tile_bytes;
    for (std::size_t g = 0; g < groups; ++g, to += kGroupBytes, bytes += kBlockBytes) {
      std::memcpy(to + lane * 2, bytes, 2);
      for (std::size_t c = 0; c < kGroup; c += 4) {
        std::memcpy(to + quant_offset(lane, c), bytes + 2 + c, 4);
      }
    }
  }
}

void PackedMatrix::read_row(std::size_t row, float* out) const {
  const std::size_t lane = row % kTileRows;
  const std::uint8_t* from = view_.data + row / kTileRows * view_.tile_bytes;
  if (packing_ == Packing::kRows) {
    return to_float(view_.type, from + lane * (view_.tile_bytes / kTileRows), cols(), out);
  }
  if (packing_ == Packing::kF32) {
    for (std::size_t c = 0; c < cols(); ++c) {
      out[c] = read<float>(from + (c * kTileRows + lane) * 4);
    }
    return;
  }
  for (std::size_t g = 0; g < cols() / kGroup; ++g, from += kGroupBytes) {
    const float scale = half_to_float(read<std::uint16_t>(from + lane * 2));
    for (std::size_t c = 0; c < kGroup; ++c) {
      const auto quant = read<std::int8_t>(from + quant_offset(lane, c));
      out[g * kGroup + c] = static_cast<float>(quant) * scale;
    }
  }
}

}  // namespace miudo
