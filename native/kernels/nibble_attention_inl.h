// Attention over int4 tiles, whose bytes hold two numbers each. Compiled once per instruction set,
// after kernels/attention_inl.h.
// What is read is least + number * step, rounded once, as a reader with a table of it would have;
// a product and its sum then come as for other types. A score sums its groups of 32 ascending,
// and within one the numbers as bytes have them: 0, 16, 1, 17 and on. Outputs sum over positions
// ascending.
#pragma once

#include "kernels/attention_inl.h"

namespace miudo {
namespace {

template <int R, int V>
inline void add_keys(const Lanes (&number)[V], const Lanes (&step)[V], const Lanes (&least)[V],
                     const float* x, Lanes (&acc)[R][V]) {
  Lanes k[V];
  for (int v = 0; v < V; ++v) k[v] = fma(number[v], step[v], least[v]);
  for (int i = 0; i < R; ++i) {
    const Lanes b = spread(x[i]);
    for (int v = 0; v < V; ++v) acc[i][v] = fma(k[v], b, acc[i][v]);
  }
}

// The scores of R rows with the keys of V vectors of positions, from position `first` on.
template <int R, int V>
inline void score_nibble_vectors(const Queries& q, const Tiles& keys, std::size_t first,
                                 float* to) {
  constexpr std::size_t kOfTile = kTilePositions / kWidth;
  const std::uint8_t *column[V], *ahead[V];
  std::size_t tile[V], slot[V];
  Lanes acc[R][V];
  for (std::size_t v = 0; v < V; ++v) {
    tile[v] = (first + v * kWidth) / kTilePositions;
    slot[v] = (first + v * kWidth) % kTilePositions;
    column[v] = numbers_of<std::uint8_t>(keys, tile[v]) + slot[v];
    ahead[v] = numbers_of<std::uint8_t>(keys, tile_ahead(keys, tile[v], V)) + slot[v];
    for (std::size_t i = 0; i < R; ++i) acc[i][v] = spread(0.0f);
  }
  for (std::size_t d = 0; d < q.head_dim; d += kScaleGroup) {
    Lanes step[V], least[V];
    for (std::size_t v = 0; v < V; ++v) {
      const Half* scales = scales_of(keys, tile[v], 2 * (d / kScaleGroup)) + slot[v];
      step[v] = load_lanes(scales);
      least[v] = load_lanes(scales + kTilePositions);
    }
    const std::size_t count = lesser(kScaleGroup, q.head_dim - d), bytes = nibble_bytes(count);
    const float* x = q.x + d * q.rows;
    for (std::size_t i = 0; i < bytes; ++i, x += q.rows) {
      Lanes low[V], high[V];
      for (std::size_t v = 0; v < V; ++v) {
        const LanePair both = load_nibbles(column[v]);
        low[v] = both.low;
        high[v] = both.high;
        if (v % kOfTile == 0) __builtin_prefetch(ahead[v]);
        column[v] += kTilePositions;
        ahead[v] += kTilePositions;
      }
      add_keys<R, V>(low, step, least, x, acc);
      if (i + kHalfGroup < count) {
        add_keys<R, V>(high, step, least, x + kHalfGroup * q.rows, acc);
      }
    }
  }
  for (std::size_t i = 0; i < R; ++i) {
    for (std::size_t v = 0; v < V; ++v) {
      store_lanes(to + i * kScoreStride + first + v * kWidth, acc[i][v]);
    }
  }
}

template <int R>
void score_nibble_rows(const Queries& q, const Tiles& keys, float* to) {
  constexpr int V = R <= 2 ? 4 : 2;
  const std::size_t positions = keys.count * kTilePositions;
  std::size_t first = 0;
  for (; first + V * kWidth <= positions; first += V * kWidth) {
    score_nibble_vectors<R, V>(q, keys, first, to);
  }
  for (; first < positions; first += 2 * kWidth) score_nibble_vectors<R, 2>(q, keys, first, to);
}

// The outputs of R rows from V vectors of bytes, byte `at` of a position and on, over positions
// [begin, end). Of a last group of 16 the high halves are nothing.
template <int R, int V, bool kHigh>
inline void weigh_nibble_vectors(const float* p, const Tiles& values, std::size_t stride,
                                 std::size_t at, std::size_t begin, std::size_t end,
                                 float* out) {
  constexpr std::size_t kHalves = kHigh ? 2 : 1;
  constexpr std::size_t kGroups = (V * kWidth + kHalfGroup - 1) / kHalfGroup;
  const std::size_t bytes = nibble_bytes(stride), group = at / kHalfGroup;
  float* place[V];
  Lanes acc[R][V][kHalves];
  for (std::size_t v = 0; v < V; ++v) {
    const std::size_t byte = at + v * kWidth;
    place[v] = out + byte / kHalfGroup * kScaleGroup + byte % kHalfGroup;
    for (std::size_t i = 0; i < R; ++i) {
      for (std::size_t h = 0; h < kHalves; ++h) {
        acc[i][v][h] = load_lanes(place[v] + i * stride + h * kHalfGroup);
      }
    }
  }
  while (begin < end) {
    const std::size_t tile = begin / kTilePositions, slot = begin % kTilePositions;
    const std::size_t stop = lesser(end - begin + slot, kTilePositions);
    const std::uint8_t* value = numbers_of<std::uint8_t>(values, tile) + at;
    const std::uint8_t* ahead =
        numbers_of<std::uint8_t>(values, tile_ahead(values, tile, 1)) + at;
    float step[kGroups][kTilePositions], least[kGroups][kTilePositions];
    for (std::size_t g = 0; g < kGroups; ++g) {
      const Half* scales = scales_of(values, tile, 2 * (group + g));
      for (std::size_t j = 0; j < kTilePositions; j += kWidth) {
        store_lanes(step[g] + j, load_lanes(scales + j));
        store_lanes(least[g] + j, load_lanes(scales + kTilePositions + j));
      }
    }
    const float* weights = p + tile * kTilePositions;
    for (std::size_t j = slot; j < stop; ++j) {
      Lanes x[V][kHalves];
      __builtin_prefetch(ahead + j * bytes);
      for (std::size_t v = 0; v < V; ++v) {
        const std::size_t g = v * kWidth / kHalfGroup;
        const LanePair both = load_nibbles(value + j * bytes + v * kWidth);
        const Lanes s = spread(step[g][j]), m = spread(least[g][j]);
        x[v][0] = fma(both.low, s, m);
        if constexpr (kHigh) x[v][1] = fma(both.high, s, m);
      }
      for (std::size_t i = 0; i < R; ++i) {
        const Lanes b = spread(weights[i * kScoreStride + j]);
        for (std::size_t v = 0; v < V; ++v) {
          for (std::size_t h = 0; h < kHalves; ++h) acc[i][v][h] = fma(x[v][h], b, acc[i][v][h]);
        }
      }
    }
    begin += stop - slot;
  }
  for (std::size_t i = 0; i < R; ++i) {
    for (std::size_t v = 0; v < V; ++v) {
      for (std::size_t h = 0; h < kHalves; ++h) {
        store_lanes(place[v] + i * stride + h * kHalfGroup, acc[i][v][h]);
      }
    }
  }
}

template <int R>
void weigh_nibble_rows(const float* p, const Tiles& values, std::size_t stride, std::size_t begin,
                       std::size_t end, float* out) {
  constexpr int V = R <= 2 ? 2 : 1;
  const std::size_t whole = stride / kScaleGroup * kHalfGroup, bytes = nibble_bytes(stride);
  std::size_t at = 0;
  for (; at + V * kWidth <= whole; at += V * kWidth) {
    weigh_nibble_vectors<R, V, true>(p, values, stride, at, begin, end, out);
  }
  for (; at < whole; at += kWidth) {
    weigh_nibble_vectors<R, 1, true>(p, values, stride, at, begin, end, out);
  }
  for (; at < bytes; at += kWidth) {
    weigh_nibble_vectors<R, 1, false>(p, values, stride, at, begin, end, out);
  }
}

void score_nibbles(const Queries& q, const Tiles& keys, float* to) {
  const auto part = [&](auto count, std::size_t at) {
    score_nibble_rows<count.kRows>({q.x + at, q.rows, q.head_dim}, keys, to + at * kScoreStride);
  };
  for_parts(q.rows, part, std::make_integer_sequence<int, kRegisterRows>());
}

void weigh_nibbles(const float* p, std::size_t rows, const Tiles& values, std::size_t stride,
                   std::size_t begin, std::size_t end, float* out) {
  const auto part = [&](auto count, std::size_t at) {
    weigh_nibble_rows<count.kRows>(p + at * kScoreStride, values, stride, begin, end,
                                 out + at * stride);
  };
  for_parts(rows, part, std::make_integer_sequence<int, kRegisterRows>());
}

constexpr CacheKernels nibble_cache_kernels() {
  return {keep_key_nibbles, keep_value_nibbles, score_nibbles, weigh_nibbles};
}

}  // namespace
}  // namespace miudo
