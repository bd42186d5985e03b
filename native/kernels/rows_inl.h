// Matrix products on rows that lie as in a file: a stretch of a row becomes floats, and all
// positions take it in. Compiled once per instruction set; see kernels.h.
// One order of sums an output element: 16 lanes, columns ascending; the lanes; the odd columns.
#pragma once

#include "kernels/dequantize_inl.h"
#include "kernels/vector_inl.h"

namespace miudo {
namespace {

constexpr std::size_t kStretch = 1024;  // columns at a time: whole blocks of every type
constexpr std::size_t kTogether = 32;   // positions that share a stretch
constexpr std::size_t kLanes = 16;

struct LaneSums {
  F8 low, high;
};

template <int N>
inline void dot(const float* w, std::size_t cols, const float* x, std::size_t stride,
                LaneSums* sums) {
  LaneSums acc[N];
  for (int i = 0; i < N; ++i) acc[i] = sums[i];
  for (std::size_t c = 0; c + kLanes <= cols; c += kLanes) {
    const F8 low = load(w + c), high = load(w + c + 8);
    for (int i = 0; i < N; ++i) {
      const float* from = x + static_cast<std::size_t>(i) * stride + c;
      acc[i].low = fma(low, load(from), acc[i].low);
      acc[i].high = fma(high, load(from + 8), acc[i].high);
    }
  }
  for (int i = 0; i < N; ++i) sums[i] = acc[i];
}

// One row of weights against n <= kTogether positions from x on.
inline void dot_row(const Packed& w, std::size_t row, const float* x, std::size_t stride,
                    std::size_t n, float* totals) {
  const BlockShape shape = kBlocks[static_cast<std::size_t>(w.type)];
  const std::uint8_t* bytes = w.data + row * (w.tile_bytes / kTileRows);
  float stretch[kStretch];
  LaneSums sums[kTogether];
  float odd[kTogether] = {};
  for (std::size_t i = 0; i < n; ++i) sums[i] = {set1(0.0f), set1(0.0f)};
  for (std::size_t from = 0; from < w.cols; from += kStretch) {
    const std::size_t cols = w.cols - from < kStretch ? w.cols - from : kStretch;
    dequantize(w.type, bytes + from / shape.values * shape.bytes, cols, stretch);
    std::size_t i = 0;
    for (; i + 4 <= n; i += 4) dot<4>(stretch, cols, x + i * stride + from, stride, sums + i);
    for (; i < n; ++i) dot<1>(stretch, cols, x + i * stride + from, stride, sums + i);
    for (std::size_t c = cols / kLanes * kLanes; c < cols; ++c) {
      for (std::size_t at = 0; at < n; ++at) odd[at] += stretch[c] * x[at * stride + from + c];
    }
  }
  for (std::size_t i = 0; i < n; ++i) {
    totals[i] = sum_lanes(add(sums[i].low, sums[i].high)) + odd[i];
  }
}

void matmul_rows(const Packed& w, const float* bias, const Rows& in, float* out,
                 std::size_t stride, std::size_t begin, std::size_t end) {
  const std::size_t last = end * kTileRows < w.rows ? end * kTileRows : w.rows;
  float totals[kTogether];
  for (std::size_t row = begin * kTileRows; row < last; ++row) {
    for (std::size_t at = 0; at < in.n; at += kTogether) {
      const std::size_t n = in.n - at < kTogether ? in.n - at : kTogether;
      dot_row(w, row, in.x + at * in.stride, in.stride, n, totals);
      for (std::size_t i = 0; i < n; ++i) {
        out[(at + i) * stride + row] = bias == nullptr ? totals[i] : totals[i] + bias[row];
      }
    }
  }
}

}  // namespace
}  // namespace miudo
