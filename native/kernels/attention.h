// Attention's part of the kernel table: keys and values as pages keep them, and what is done with
// them. Not for: who sees what (model/attend.cc). Read next: kernels/attention_inl.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace miudo {

constexpr std::size_t kTilePositions = 32;  // keys and values are tiled by absolute position
// Positions of one softmax, a stretch, cut by absolute position too: a longer text is the sum of
// its stretches in order, whoever computed them.
constexpr std::size_t kSpan = 512;
// No multiple of 4,096 bytes, where lines of a cache push each other out.
constexpr std::size_t kScoreStride = kSpan + 16;
constexpr std::size_t kQueryRows = 8;       // query rows that share a load of keys
constexpr std::size_t kValueMultiple = 16;  // a value's room in a page, in numbers

// What a cached number is stored as. Int8: groups of 32 with a float16 scale of amax / 127, as
// Q8_0 has them. Int4: groups of 32 with a float16 step and minimum, as Q4_1 has them; number n
// is least + n * step.
enum class CacheType { kF32 = 0, kF16 = 1, kBF16 = 2, kInt8 = 3, kInt4 = 4 };
constexpr int kCacheTypes = 5;
constexpr std::size_t kScaleGroup = 32;

// Int4: a byte holds numbers i (low) and i + 16 (high) of one position's group, so that no two
// positions, which two threads may write, share one. A last group of 16 or fewer has a byte each.
constexpr std::size_t kHalfGroup = kScaleGroup / 2;
constexpr std::size_t nibble_bytes(std::size_t n) {
  const std::size_t rest = n % kScaleGroup;
  return n / kScaleGroup * kHalfGroup + (rest < kHalfGroup ? rest : kHalfGroup);
}

// One head's keys or values in consecutive pages: `numbers` and `scales` are where they lie in
// each, in bytes. Keys are [head_dim][32], values [32][value_stride], scales [groups][32]. Int4
// has bytes, [nibble_bytes(head_dim)][32] and [32][nibble_bytes(value_stride)], and for scales of
// each group the steps [32], then the minima [32].
struct Tiles {
  const std::uint8_t* const* pages;
  std::size_t numbers, scales;
  std::size_t count;
};

// `rows` query rows of one head, [head_dim][rows]: a row's numbers lie `rows` apart.
struct Queries {
  const float* x;
  std::size_t rows, head_dim;
};

// A softmax before it is divided: the greatest score, and the sum of e^(score - greatest).
struct Part {
  float top, sum;
};

// One table for each CacheType.
struct CacheKernels {
  // Round one position's key or value [n] into its slot of a page's tile.
  void (*keep_key)(const float* x, std::size_t n, std::size_t slot, std::uint8_t* numbers,
                   std::uint8_t* scales);
  void (*keep_value)(const float* x, std::size_t n, std::size_t stride, std::size_t slot,
                     std::uint8_t* numbers, std::uint8_t* scales);
  // scores[r][j] = q[r] . key[j] over all of `keys`; rows of scores lie kScoreStride apart.
  void (*scores)(const Queries& q, const Tiles& keys, float* scores);
  // out[r][d] += sum_j p[r][j] * value[j][d] over positions [begin, end) of `values`; rows of p
  // lie kScoreStride apart, rows of out `stride`.
  void (*weigh)(const float* p, std::size_t rows, const Tiles& values, std::size_t stride,
                std::size_t begin, std::size_t end, float* out);
};

}  // namespace miudo
