// Attention over tiles of 32 positions. Compiled once per instruction set; see kernels.h.
// Every score sums over head_dim ascending, every output over positions ascending, and a softmax
// sum has one lane per (position mod 16): the bits are those of a row alone, however many
// rows share a load and however a prompt was chunked.
#pragma once

#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "kernels/keep_inl.h"
#include "kernels/kernels.h"

namespace miudo {
namespace {

// Vectors of a row whose sums run side by side: one chain alone would wait for itself.
template <typename T, int R>
constexpr int kVectors = R <= 2 && !kScaled<T> ? 4 : 2;

// Of a row's mix of values, likewise; sixteen lanes have registers for one more. Vectors that are
// mixed together share a scale.
template <typename T, int R>
constexpr int kMixVectors =
    kVectors<T, R> == 2 && kWidth == 16 && !kScaled<T> ? 3 : kVectors<T, R>;

template <typename T>
inline const T* numbers_of(const Tiles& tiles, std::size_t tile) {
  return reinterpret_cast<const T*>(tiles.pages[tile] + tiles.numbers);
}
inline const Half* scales_of(const Tiles& tiles, std::size_t tile, std::size_t group) {
  const auto* scales = reinterpret_cast<const Half*>(tiles.pages[tile] + tiles.scales);
  return scales + group * kTilePositions;
}

// Tiles lie far apart, one a page: the next is asked for while one is worked on.
inline std::size_t tile_ahead(const Tiles& tiles, std::size_t tile, std::size_t vectors) {
  const std::size_t next = tile + (vectors * kWidth + kTilePositions - 1) / kTilePositions;
  return next < tiles.count ? next : tile;
}
template <typename T>
constexpr bool starts_line(int vector) {
  return static_cast<std::size_t>(vector) * kWidth * sizeof(T) % 64 == 0;
}

// 2^t within 3e-7 for t <= 0, 0 below -126.5, and NaN for NaN.
inline Lanes exp2_of(Lanes t) {
  const Lanes held = max(spread(-127.0f), t);
  const Lanes n = round_lanes(held), r = sub(held, n);
  // Least relative error over [-1/2, 1/2] of those that are exactly 1 at 0.
  constexpr float kTerms[] = {0.009671513f, 0.055507336f, 0.240222424f, 0.693147004f, 1.0f};
  Lanes p = spread(0.0013264727f);
  for (const float term : kTerms) p = fma(p, r, spread(term));
  return times_pow2(p, n);
}

// The scores of R rows with the keys of V vectors of positions, from position `first` on.
template <typename T, int R, int V>
inline void score_vectors(const Queries& q, const Tiles& keys, std::size_t first, float* to) {
  const T *column[V], *ahead[V];
  std::size_t tile[V], slot[V];
  for (std::size_t v = 0; v < V; ++v) {
    tile[v] = (first + v * kWidth) / kTilePositions;
    slot[v] = (first + v * kWidth) % kTilePositions;
    column[v] = numbers_of<T>(keys, tile[v]) + slot[v];
    ahead[v] = numbers_of<T>(keys, tile_ahead(keys, tile[v], V)) + slot[v];
  }
  const float* x = q.x;
  for (std::size_t d = 0; d < q.head_dim;) {
    const std::size_t group = d / kScaleGroup;
    const std::size_t end = kScaled<T> ? lesser(q.head_dim, d + kScaleGroup) : q.head_dim;
    Lanes acc[R][V];
    for (auto& row : acc) {
      for (Lanes& a : row) a = spread(0.0f);
    }
    for (; d < end; ++d, x += q.rows) {
      Lanes k[V];
      for (int v = 0; v < V; ++v) {
        k[v] = load_lanes(column[v] + d * kTilePositions);
        if (starts_line<T>(v)) __builtin_prefetch(ahead[v] + d * kTilePositions);
      }
      for (int i = 0; i < R; ++i) {
        const Lanes b = spread(x[i]);
        for (int v = 0; v < V; ++v) acc[i][v] = fma(k[v], b, acc[i][v]);
      }
    }
    for (std::size_t v = 0; v < V; ++v) {
      float* at = to + first + v * kWidth;
      for (int i = 0; i < R; ++i, at += kScoreStride) {
        if constexpr (kScaled<T>) {
          const Lanes scale = load_lanes(scales_of(keys, tile[v], group) + slot[v]);
          acc[i][v] = fma(acc[i][v], scale, group == 0 ? spread(0.0f) : load_lanes(at));
        }
        store_lanes(at, acc[i][v]);
      }
    }
  }
}

template <typename T, int R>
void score_rows(const Queries& q, const Tiles& keys, float* to) {
  constexpr int V = kVectors<T, R>;
  const std::size_t positions = keys.count * kTilePositions;
  std::size_t first = 0;
  for (; first + V * kWidth <= positions; first += V * kWidth) {
    score_vectors<T, R, V>(q, keys, first, to);
  }
  for (; first < positions; first += 2 * kWidth) score_vectors<T, R, 2>(q, keys, first, to);
}

// The outputs of R rows in V vectors of dimensions from d on, over positions [begin, end).
template <typename T, int R, int V>
inline void weigh_vectors(const float* p, const Tiles& values, std::size_t stride, std::size_t d,
                          std::size_t begin, std::size_t end, float* out) {
  static_assert(!kScaled<T> || V * kWidth <= kScaleGroup);
  Lanes acc[R][V];
  for (std::size_t i = 0; i < R; ++i) {
    for (std::size_t v = 0; v < V; ++v) acc[i][v] = load_lanes(out + i * stride + d + v * kWidth);
  }
  while (begin < end) {
    const std::size_t tile = begin / kTilePositions, slot = begin % kTilePositions;
    const std::size_t stop = lesser(end, (tile + 1) * kTilePositions);
    const T* value = numbers_of<T>(values, tile) + slot * stride + d;
    const T* ahead = numbers_of<T>(values, tile_ahead(values, tile, 1)) + slot * stride + d;
    const float* weights = p + begin;
    std::size_t weight_stride = kScoreStride;
    float scaled[R][kTilePositions];
    if constexpr (kScaled<T>) {
      const Half* scales = scales_of(values, tile, d / kScaleGroup);
      for (std::size_t i = 0; i < R; ++i) {
        const float* row = p + i * kScoreStride + tile * kTilePositions;
        for (std::size_t j = 0; j < kTilePositions; j += kWidth) {
          store_lanes(scaled[i] + j, mul(load_lanes(row + j), load_lanes(scales + j)));
        }
      }
      weights = scaled[0] + slot;
      weight_stride = kTilePositions;
    }
    for (; begin < stop; ++begin, value += stride, ahead += stride, ++weights) {
      Lanes x[V];
      for (std::size_t v = 0; v < V; ++v) {
        x[v] = load_lanes(value + v * kWidth);
        if (starts_line<T>(static_cast<int>(v))) __builtin_prefetch(ahead + v * kWidth);
      }
      for (std::size_t i = 0; i < R; ++i) {
        const Lanes b = spread(weights[i * weight_stride]);
        for (int v = 0; v < V; ++v) acc[i][v] = fma(x[v], b, acc[i][v]);
      }
    }
  }
  for (std::size_t i = 0; i < R; ++i) {
    for (std::size_t v = 0; v < V; ++v) {
      store_lanes(out + i * stride + d + v * kWidth, acc[i][v]);
    }
  }
}

// Dimensions [d, stop) by V vectors while these fit; returns where the rest begins.
template <typename T, int R, int V>
inline std::size_t weigh_while(const float* p, const Tiles& values, std::size_t stride,
                               std::size_t d, std::size_t stop, std::size_t begin, std::size_t end,
                               float* out) {
  if constexpr (V <= kMixVectors<T, R>) {
    for (; d + V * kWidth <= stop; d += V * kWidth) {
      weigh_vectors<T, R, V>(p, values, stride, d, begin, end, out);
    }
  }
  return d;
}

template <typename T, int R>
void weigh_rows(const float* p, const Tiles& values, std::size_t stride, std::size_t begin,
                std::size_t end, float* out) {
  std::size_t d = weigh_while<T, R, 4>(p, values, stride, 0, stride, begin, end, out);
  // Three at most once: an odd one alone, of many rows, would wait for itself.
  const std::size_t left = (stride - d) / kWidth;
  if (left % 2 == 1 && left > 1) {
    d = weigh_while<T, R, 3>(p, values, stride, d, d + 3 * kWidth, begin, end, out);
  }
  d = weigh_while<T, R, 2>(p, values, stride, d, stride, begin, end, out);
  weigh_while<T, R, 1>(p, values, stride, d, stride, begin, end, out);
}

template <int R>
struct Count {
  static constexpr int kRows = R;
};

// Calls f(Count<R>, first row) for parts of at most kRegisterRows rows, as
// equal as can be.
template <typename F, int... I>
inline void for_parts(std::size_t rows, const F& f, std::integer_sequence<int, I...>) {
  for (std::size_t at = 0; at < rows;) {
    const std::size_t left = rows - at, parts = (left + kRegisterRows - 1) / kRegisterRows;
    const std::size_t count = (left + parts - 1) / parts;
    ((count == I + 1 ? f(Count<I + 1>(), at) : void()), ...);
    at += count;
  }
}

template <typename T>
void scores(const Queries& q, const Tiles& keys, float* to) {
  const auto part = [&](auto count, std::size_t at) {
    score_rows<T, count.kRows>({q.x + at, q.rows, q.head_dim}, keys, to + at * kScoreStride);
  };
  for_parts(q.rows, part, std::make_integer_sequence<int, kRegisterRows>());
}

template <typename T>
void weigh(const float* p, std::size_t rows, const Tiles& values, std::size_t stride,
           std::size_t begin, std::size_t end, float* out) {
  const auto part = [&](auto count, std::size_t at) {
    weigh_rows<T, count.kRows>(p + at * kScoreStride, values, stride, begin, end,
                               out + at * stride);
  };
  for_parts(rows, part, std::make_integer_sequence<int, kRegisterRows>());
}

Part softmax(float* s, std::size_t begin, std::size_t end, std::size_t size) {
  constexpr float kHidden = -std::numeric_limits<float>::infinity(), kLog2E = 1.44269504f;
  for (std::size_t j = 0; j < begin; ++j) s[j] = kHidden;
  for (std::size_t j = end; j < size; ++j) s[j] = kHidden;
  Lanes most = spread(kHidden);
  for (std::size_t j = 0; j < size; j += kWidth) most = max(load_lanes(s + j), most);
  float lane[kWidth];
  store_lanes(lane, most);
  float top = kHidden;
  for (const float x : lane) top = x > top ? x : top;
  const Lanes greatest = spread(top), scale = spread(kLog2E);
  constexpr std::size_t kSums = kTileRows / kWidth;  // sixteen sums, whatever the width
  Lanes sums[kSums];
  for (Lanes& part : sums) part = spread(0.0f);
  for (std::size_t j = 0; j < size; j += kTileRows) {
    for (std::size_t i = 0; i < kSums; ++i) {
      float* at = s + j + i * kWidth;
      const Lanes e = exp2_of(mul(sub(load_lanes(at), greatest), scale));
      store_lanes(at, e);
      sums[i] = add(sums[i], e);
    }
  }
  float sum = 0.0f;
  for (const Lanes& part : sums) {
    store_lanes(lane, part);
    for (const float x : lane) sum += x;
  }
  return {top, sum};
}

void rotate(float* x, const float* cos, const float* sin, std::size_t half) {
  std::size_t i = 0;
  for (; i + kWidth <= half; i += kWidth) {
    const Lanes a = load_lanes(x + i), b = load_lanes(x + i + half);
    const Lanes c = load_lanes(cos + i), s = load_lanes(sin + i);
    store_lanes(x + i, sub(mul(a, c), mul(b, s)));
    store_lanes(x + i + half, add(mul(b, c), mul(a, s)));
  }
  for (; i + 8 <= half; i += 8) {
    const F8 a = load(x + i), b = load(x + i + half), c = load(cos + i), s = load(sin + i);
    store(x + i, sub(mul(a, c), mul(b, s)));
    store(x + i + half, add(mul(b, c), mul(a, s)));
  }
  for (; i < half; ++i) {
    const float a = x[i], b = x[i + half];
    x[i] = a * cos[i] - b * sin[i];
    x[i + half] = b * cos[i] + a * sin[i];
  }
}

template <typename T>
constexpr CacheKernels cache_kernels() {
  return {keep_key<T>, keep_value<T>, scores<T>, weigh<T>};
}

}  // namespace
}  // namespace miudo
