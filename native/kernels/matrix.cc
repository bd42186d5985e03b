#include "kernels/matrix.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/pack.h"
#include "kernels/sparse.h"
// Values are widened on the lanes of any processor.
#include "kernels/simd_portable.h"
//
#include "kernels/dequantize_inl.h"

namespace miudo {
namespace {

// Rows of a file, `row_bytes` apart, into the columns of a tile. 32 columns at a time: written a
// lane at a time, every number would be on a line that has left the first cache.
template <std::size_t kSize>
void transpose(const std::uint8_t* rows, std::size_t row_bytes, std::size_t count,
               std::uint8_t* tile) {
  const std::size_t cols = row_bytes / kSize;
  for (std::size_t begin = 0; begin < cols; begin += kGroup) {
    const std::size_t end = std::min(begin + kGroup, cols);
    for (std::size_t lane = 0; lane < count; ++lane) {
      for (std::size_t c = begin; c < end; ++c) {
        std::memcpy(tile + (c * kTileRows + lane) * kSize, rows + lane * row_bytes + c * kSize,
                    kSize);
      }
    }
  }
}

std::size_t tile_bytes_of(DType type, std::size_t cols) {
  if (is_float(type)) return round_up(kTileRows * stored_bytes(type, 1, cols), kLine);
  return round_up(TileLayout(format_of(type)).size(cols / kGroup), kLine);
}

// A matrix as it lies in memory, but for where.
Packed laid_out(const SparseMatrix& m, bool masks) {
  if (!is_sparse(m.type)) return {nullptr, m.rows, m.cols, tile_bytes_of(m.type, m.cols), m.type};
  const SparseLayout at = layout_of(m, masks);
  const DType type = at.form == SparseForm::kDense ? dense_of(m.type) : m.type;
  return {nullptr, m.rows, m.cols, at.tile_bytes, type, at.form == SparseForm::kMasks};
}

}  // namespace

std::size_t stored_bytes(DType type, std::size_t rows, std::size_t cols) {
  const BlockShape shape = kBlocks[static_cast<std::size_t>(type)];
  return cols % shape.values != 0 ? 0 : rows * (cols / shape.values) * shape.bytes;
}

void to_float(DType type, const std::uint8_t* bytes, std::size_t count, float* out) {
  dequantize(type, bytes, count, out);
}

std::size_t wanted_bytes(DType type, std::size_t rows, std::size_t cols, const std::uint8_t* bytes,
                         std::size_t size) {
  if (!is_sparse(type)) return stored_bytes(type, rows, cols);
  const std::size_t head = sparse_head(rows, cols);
  return size < head ? head : sparse_bytes(type, rows, cols, bytes);
}

std::size_t packed_bytes(DType type, std::size_t rows, std::size_t cols, const std::uint8_t* bytes,
                         bool masks) {
  return tiles_of(rows) * laid_out({type, rows, cols, bytes}, masks).tile_bytes;
}

PackedMatrix::PackedMatrix(std::uint8_t* space, DType type, std::size_t rows, std::size_t cols,
                           const std::uint8_t* bytes, bool masks) {
  plan(space, type, rows, cols, bytes, masks);
}

PackedMatrix::PackedMatrix(DType type, std::size_t rows, std::size_t cols,
                           const std::uint8_t* bytes, bool masks)
    : own_(packed_bytes(type, rows, cols, bytes, masks), kUnset) {
  plan(own_.data(), type, rows, cols, bytes, masks);
  pack(bytes, 0, tiles());
}

void PackedMatrix::plan(std::uint8_t* space, DType type, std::size_t rows, std::size_t cols,
                        const std::uint8_t* bytes, bool masks) {
  space_ = space;
  stored_ = type;
  const SparseMatrix stored{type, rows, cols, bytes};
  view_ = laid_out(stored, masks);
  view_.data = space;
  if (is_sparse(type)) first_numbers_ = first_numbers(stored);
}

void PackedMatrix::pack(const std::uint8_t* bytes, std::size_t begin, std::size_t end) {
  if (is_sparse(stored_)) {
    const SparseMatrix stored{stored_, rows(), cols(), bytes};
    const SparseForm form = view_.masks         ? SparseForm::kMasks
                            : is_sparse(type()) ? SparseForm::kPairs
                                                : SparseForm::kDense;
    for (std::size_t tile = begin; tile < end; ++tile) {
      pack_sparse_tile(stored, tile, first_numbers_[tile], form,
                       space_ + tile * view_.tile_bytes, view_.tile_bytes);
    }
    return;
  }
  const std::size_t row_bytes = stored_bytes(type(), 1, cols());
  for (std::size_t tile = begin; tile < end; ++tile) {
    std::uint8_t* to = space_ + tile * view_.tile_bytes;
    const std::size_t first = tile * kTileRows, count = std::min(kTileRows, rows() - first);
    const std::uint8_t* from = bytes + first * row_bytes;
    if (!is_float(type())) {
      pack_tile(type(), cols() / kGroup, from, row_bytes, count, to, view_.tile_bytes);
      continue;
    }
    if (count < kTileRows) std::memset(to, 0, view_.tile_bytes);
    if (type() == DType::kF32) {
      transpose<4>(from, row_bytes, count, to);
    } else {
      transpose<2>(from, row_bytes, count, to);
    }
  }
}

void PackedMatrix::read_row(std::size_t row, float* out) const {
  const std::size_t lane = row % kTileRows;
  if (is_sparse(type())) {
    std::vector<std::uint8_t> dense(dense_tile_bytes(type(), cols()));
    expand_tile(view_, row / kTileRows, dense.data());
    for (std::size_t g = 0; g < cols() / kGroup; ++g) {
      read_group(dense_of(type()), dense.data(), g, lane, out + g * kGroup);
    }
    return;
  }
  const std::uint8_t* tile = view_.data + row / kTileRows * view_.tile_bytes;
  if (!is_float(type())) {
    for (std::size_t g = 0; g < cols() / kGroup; ++g) {
      read_group(type(), tile, g, lane, out + g * kGroup);
    }
    return;
  }
  const std::size_t size = kBlocks[static_cast<std::size_t>(type())].bytes;
  for (std::size_t c = 0; c < cols(); ++c) {
    to_float(type(), tile + (c * kTileRows + lane) * size, 1, out + c);
  }
}

}  // namespace miudo
