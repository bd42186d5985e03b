#include "kernels/matrix.h"

#include <cstring>
#include <vector>

#include "kernels/half.h"

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
  switch (type) {
    case DType::kF32: return rows * cols * 4;
    case DType::kF16:
    case DType::kBF16: return rows * cols * 2;
    case DType::kQ8_0: return cols % kGroup != 0 ? 0 : rows * (cols / kGroup) * kBlockBytes;
  }
  return 0;
}

void to_float(DType type, const std::uint8_t* bytes, std::size_t count, float* out) {
  for (std::size_t i = 0; i < count; ++i) {
    switch (type) {
      case DType::kF32: out[i] = read<float>(bytes + i * 4); break;
      case DType::kF16: out[i] = half_to_float(read<std::uint16_t>(bytes + i * 2)); break;
      case DType::kBF16: out[i] = bfloat_to_float(read<std::uint16_t>(bytes + i * 2)); break;
      case DType::kQ8_0: {
        const std::uint8_t* block = bytes + i / kGroup * kBlockBytes;
        const float quant = static_cast<float>(read<std::int8_t>(block + 2 + i % kGroup));
        out[i] = quant * half_to_float(read<std::uint16_t>(block));
        break;
      }
    }
  }
}

PackedMatrix::PackedMatrix(DType type, std::size_t rows, std::size_t cols,
                           const std::uint8_t* bytes)
    : packing_(type == DType::kQ8_0 ? Packing::kQ8 : Packing::kF32) {
  const bool q8 = packing_ == Packing::kQ8;
  view_ = {nullptr, rows, cols, q8 ? cols / kGroup * kGroupBytes : cols * kTileRows * 4};
  data_ = Buffer<std::uint8_t>(tiles() * view_.tile_bytes);
  view_.data = data_.data();
  if (q8) {
    pack_q8(bytes);
  } else {
    pack_f32(type, bytes);
  }
}

void PackedMatrix::pack_f32(DType type, const std::uint8_t* bytes) {
  std::vector<float> row(cols());
  const std::size_t row_bytes = stored_bytes(type, 1, cols());
  for (std::size_t r = 0; r < rows(); ++r) {
    to_float(type, bytes + r * row_bytes, cols(), row.data());
    std::uint8_t* at = data_.data() + r / kTileRows * view_.tile_bytes + r % kTileRows * 4;
    for (std::size_t c = 0; c < cols(); ++c) {
      std::memcpy(at + c * kTileRows * 4, &row[c], 4);
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
