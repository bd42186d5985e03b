// Attention over tiles of 32 positions. Compiled once per instruction set; see kernels.h.
// A score sums over head_dim ascending; a softmax sum has one lane per (position mod 8), so
// tiles cut by absolute position give the same bits however a prompt was chunked.
#pragma once

#include <limits>

#include "kernels/kernels.h"
#include "kernels/vector_inl.h"

namespace miudo {
namespace {

template <int R>
void scores_of(const float* q, std::size_t q_stride, std::size_t head_dim, const float* keys,
               float* scores, std::size_t stride) {
  for (std::size_t at = 0; at < kTilePositions; at += 16) {
    F8 acc[R][2];
    for (auto& row : acc) row[0] = row[1] = set1(0.0f);
    const float* k = keys + at;
    for (std::size_t d = 0; d < head_dim; ++d, k += kTilePositions) {
      const F8 low = load(k), high = load(k + 8);
      for (int i = 0; i < R; ++i) {
        const F8 b = set1(q[static_cast<std::size_t>(i) * q_stride + d]);
        acc[i][0] = fma(low, b, acc[i][0]);
        acc[i][1] = fma(high, b, acc[i][1]);
      }
    }
    for (int i = 0; i < R; ++i) {
      float* to = scores + static_cast<std::size_t>(i) * stride + at;
      store(to, acc[i][0]);
      store(to + 8, acc[i][1]);
    }
  }
}

void scores(const float* q, std::size_t q_stride, std::size_t rows, std::size_t head_dim,
            const float* keys, float* to, std::size_t stride) {
  for (; rows >= 4; rows -= 4, q += 4 * q_stride, to += 4 * stride) {
    scores_of<4>(q, q_stride, head_dim, keys, to, stride);
  }
  if (rows == 3) scores_of<3>(q, q_stride, head_dim, keys, to, stride);
  if (rows == 2) scores_of<2>(q, q_stride, head_dim, keys, to, stride);
  if (rows == 1) scores_of<1>(q, q_stride, head_dim, keys, to, stride);
}

float softmax(float* s, std::size_t begin, std::size_t end, std::size_t size) {
  constexpr float kHidden = -std::numeric_limits<float>::infinity();
  for (std::size_t j = 0; j < begin; ++j) s[j] = kHidden;
  for (std::size_t j = end; j < size; ++j) s[j] = kHidden;
  F8 most = set1(kHidden);
  for (std::size_t j = 0; j < size; j += 8) most = max(load(s + j), most);
  const F8 top = set1(max_lanes(most));
  F8 lanes = set1(0.0f);
  for (std::size_t j = 0; j < size; j += 8) {
    const F8 e = exp8(sub(load(s + j), top));
    store(s + j, e);
    lanes = add(lanes, e);
  }
  return sum_lanes(lanes);
}

template <int R, int kVectors>
void weigh_columns(const float* p, std::size_t p_stride, const float* values,
                   std::size_t value_stride, std::size_t begin, std::size_t end, float* out,
                   std::size_t out_stride) {
  F8 acc[R][kVectors];
  for (int i = 0; i < R; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      acc[i][v] = load(out + static_cast<std::size_t>(i) * out_stride + 8 * v);
    }
  }
  for (std::size_t j = begin; j < end; ++j) {
    for (int v = 0; v < kVectors; ++v) {
      const F8 value = load(values + j * value_stride + 8 * v);
      for (int i = 0; i < R; ++i) {
        const F8 b = set1(p[static_cast<std::size_t>(i) * p_stride + j]);
        acc[i][v] = fma(value, b, acc[i][v]);
      }
    }
  }
  for (int i = 0; i < R; ++i) {
    for (int v = 0; v < kVectors; ++v) {
      store(out + static_cast<std::size_t>(i) * out_stride + 8 * v, acc[i][v]);
    }
  }
}

template <int R>
void weigh_rows(const float* p, std::size_t p_stride, const float* values,
                std::size_t value_stride, std::size_t begin, std::size_t end, float* out,
                std::size_t out_stride) {
  // value_stride is a multiple of 8: values and out are padded with zeros.
  std::size_t d = 0;
  for (; d + 16 <= value_stride; d += 16) {
    weigh_columns<R, 2>(p, p_stride, values + d, value_stride, begin, end, out + d, out_stride);
  }
  if (d < value_stride) {
    weigh_columns<R, 1>(p, p_stride, values + d, value_stride, begin, end, out + d, out_stride);
  }
}

void weigh(const float* p, std::size_t p_stride, std::size_t rows, const float* values,
           std::size_t value_stride, std::size_t begin, std::size_t end, float* out,
           std::size_t out_stride) {
  for (; rows >= 4; rows -= 4, p += 4 * p_stride, out += 4 * out_stride) {
    weigh_rows<4>(p, p_stride, values, value_stride, begin, end, out, out_stride);
  }
  for (; rows > 0; --rows, p += p_stride, out += out_stride) {
    weigh_rows<1>(p, p_stride, values, value_stride, begin, end, out, out_stride);
  }
}

}  // namespace
}  // namespace miudo
