// The kernels of attention against plain formulas, for every type that pages keep.
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/half.h"
#include "kernels/kernels.h"
#include "test/all_kernels.h"
#include "test/check.h"
#include "util/buffer.h"

namespace miudo {
namespace {

using test::all_kernels;
using test::Noise;

constexpr CacheType kTypes[] = {CacheType::kF32, CacheType::kF16, CacheType::kBF16,
                                CacheType::kInt8, CacheType::kInt4};
constexpr std::size_t kTiles = 3, kPositions = kTiles * kTilePositions;

bool near(double a, double b, double bound) {
  return std::abs(a - b) <= bound * (1.0 + std::abs(b));
}

// What a stored number differs from the given one by, at most, relative to the greatest of 32.
double step_of(CacheType type) {
  switch (type) {
    case CacheType::kF32: return 0.0;
    case CacheType::kF16: return 0x1p-11;
    case CacheType::kBF16: return 0x1p-8;
    case CacheType::kInt8: return 0.5 / 127.0 + 0x1p-10;
    case CacheType::kInt4: return 1.0 / 15.0 + 0x1p-9;  // half of a fifteenth of -1 to 1
  }
  return 0.0;
}

// Three pages of one head, keys [dim] and values [stride], and what was put into them.
struct Cache {
  Cache(const Kernels& kernels, CacheType type, std::size_t key_dim, std::size_t value_dim)
      : kernel(kernels.cache[static_cast<std::size_t>(type)]),
        dim(key_dim),
        v_dim(value_dim),
        stride(round_up(value_dim, kValueMultiple)) {
    constexpr std::size_t kNumber = 4, kScales = 8 * kTilePositions * sizeof(Half);
    const std::size_t key_bytes = dim * kTilePositions * kNumber;
    const std::size_t value_bytes = stride * kTilePositions * kNumber;
    for (std::size_t t = 0; t < kTiles; ++t) {
      memory.emplace_back(key_bytes + value_bytes + 2 * kScales);
      pages.push_back(memory.back().data());
    }
    keys = {pages.data(), 0, key_bytes + value_bytes, kTiles};
    values = {pages.data(), key_bytes, key_bytes + value_bytes + kScales, kTiles};
  }

  void keep(const std::vector<float>& k, const std::vector<float>& v) {
    for (std::size_t j = 0; j < kPositions; ++j) {
      std::uint8_t* page = memory[j / kTilePositions].data();
      const std::size_t slot = j % kTilePositions;
      kernel.keep_key(k.data() + j * dim, dim, slot, page + keys.numbers, page + keys.scales);
      kernel.keep_value(v.data() + j * v_dim, v_dim, stride, slot, page + values.numbers,
                        page + values.scales);
    }
  }

  // The scores of `rows` queries [rows, dim], [rows, kScoreStride].
  std::vector<float> scores(const std::vector<float>& q, std::size_t rows) const {
    std::vector<float> across(rows * dim), s(rows * kScoreStride);
    for (std::size_t r = 0; r < rows; ++r) {
      for (std::size_t d = 0; d < dim; ++d) across[d * rows + r] = q[r * dim + d];
    }
    kernel.scores({across.data(), rows, dim}, keys, s.data());
    return s;
  }

  // What is stored, read back by the kernels themselves: as scores of unit vectors ...
  std::vector<float> stored_keys() const {
    std::vector<float> out(kPositions * dim);
    for (std::size_t d = 0; d < dim; ++d) {
      std::vector<float> unit(dim, 0.0f);
      unit[d] = 1.0f;
      const std::vector<float> s = scores(unit, 1);
      for (std::size_t j = 0; j < kPositions; ++j) out[j * dim + d] = s[j];
    }
    return out;
  }
  // ... and with all the weight on one position.
  std::vector<float> stored_values() const {
    std::vector<float> out(kPositions * stride, 0.0f), p(kScoreStride, 1.0f);
    for (std::size_t j = 0; j < kPositions; ++j) {
      kernel.weigh(p.data(), 1, values, stride, j, j + 1, out.data() + j * stride);
    }
    return out;
  }

  const CacheKernels& kernel;
  std::size_t dim, v_dim, stride;
  std::vector<Buffer<std::uint8_t>> memory;
  std::vector<const std::uint8_t*> pages;
  Tiles keys, values;
};

TEST(halves_round_half_to_even) {
  for (std::uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float value = half_to_float(half);
    if (std::isnan(value)) {
      CHECK(std::isnan(half_to_float(half_of(value).bits)));
      continue;
    }
    CHECK(half_of(value).bits == half);
    const float bfloat = float_of_bits(bits << 16);
    CHECK(bfloat_of(bfloat).bits == half || std::isnan(bfloat));
    if ((bits & 0x7FFFu) >= 0x7BFFu) continue;
    const float next = half_to_float(static_cast<std::uint16_t>(half + 1u));
    const float middle = 0.5f * (value + next);  // exact: a float16 has 13 bits less
    CHECK(half_of(middle).bits == (half % 2 == 0 ? half : half + 1u));
    CHECK(half_of(std::nextafter(middle, value)).bits == half);
    CHECK(half_of(std::nextafter(middle, next)).bits == half + 1u);
  }
  CHECK(half_of(65519.0f).bits == 0x7BFFu && half_of(65520.0f).bits == 0x7C00u);
  CHECK(half_of(-1e30f).bits == 0xFC00u && half_of(1e-30f).bits == 0u);
  CHECK(bfloat_of(1.0f + 0x1p-8f).bits == 0x3F80u && bfloat_of(1.0f + 0x3p-8f).bits == 0x3F82u);
  CHECK(std::isnan(float_of_bits(std::uint32_t{bfloat_of(float_of_bits(0x7F800001u)).bits} << 16)));
}

TEST(kept_numbers_are_rounded_and_alike_on_every_instruction_set) {
  for (const CacheType type : kTypes) {
    for (const std::size_t dim : {1u, 5u, 16u, 33u, 48u, 64u, 80u}) {
      Noise noise(dim);
      const std::vector<float> k = noise.floats(kPositions * dim);
      const std::vector<float> v = noise.floats(kPositions * dim);
      Cache first(kernels_for(Isa::kPortable), type, dim, dim);
      first.keep(k, v);
      const std::vector<float> keys = first.stored_keys(), values = first.stored_values();
      for (std::size_t j = 0; j < kPositions; ++j) {
        for (std::size_t d = 0; d < first.stride; ++d) {
          const double step = step_of(type);
          const double value = static_cast<double>(values[j * first.stride + d]);
          if (d >= dim) {  // room that nobody looks at; int4 has its minimum there
            CHECK(type == CacheType::kInt4 || near(value, 0.0, 0.0));
            continue;
          }
          const double key = static_cast<double>(keys[j * dim + d]);
          CHECK(std::abs(key - static_cast<double>(k[j * dim + d])) <= step);
          CHECK(std::abs(value - static_cast<double>(v[j * dim + d])) <= step);
        }
      }
      for (const Kernels* kernels : all_kernels()) {
        Cache other(*kernels, type, dim, dim);
        other.keep(k, v);
        for (std::size_t t = 0; t < kTiles; ++t) {
          const Buffer<std::uint8_t>&a = first.memory[t], &b = other.memory[t];
          CHECK(std::memcmp(a.data(), b.data(), a.size()) == 0);
        }
        CHECK(other.stored_keys() == keys && other.stored_values() == values);
      }
    }
  }
}

// What is read back is the nearest of 16 steps over the range of a group, wherever that lies.
TEST(int4_follows_the_range_of_its_group) {
  constexpr std::size_t kDim = 48;  // a whole group, and half of one
  for (const Kernels* kernels : all_kernels()) {
    Noise noise(3);
    std::vector<float> x = noise.floats(kPositions * kDim);
    std::vector<double> middle(kPositions), spread(kPositions);
    for (std::size_t j = 0; j < kPositions; ++j) {
      middle[j] = static_cast<double>(j) - 48.0;
      spread[j] = std::exp2(static_cast<double>(j % 12) - 8.0);
      if (j % 13 == 0) spread[j] = 0.0;
      for (std::size_t d = 0; d < kDim; ++d) {
        float& value = x[j * kDim + d];
        value = static_cast<float>(middle[j] + spread[j] * static_cast<double>(value));
      }
    }
    Cache cache(*kernels, CacheType::kInt4, kDim, kDim);
    cache.keep(x, x);
    const std::vector<float> keys = cache.stored_keys(), values = cache.stored_values();
    for (std::size_t j = 0; j < kPositions; ++j) {
      // Half a step, and what float16 does to the minimum and the step.
      const double bound = spread[j] / 15.0 + (std::abs(middle[j]) + 4.0 * spread[j]) * 0x1p-11;
      for (std::size_t d = 0; d < kDim; ++d) {
        const double given = static_cast<double>(x[j * kDim + d]);
        CHECK(std::abs(static_cast<double>(keys[j * kDim + d]) - given) <= bound);
        CHECK(keys[j * kDim + d] == values[j * cache.stride + d]);
      }
    }
  }
}

// NaN is never kept as a number, and infinity never as a finite one.
TEST(kept_numbers_that_are_none) {
  for (const Kernels* kernels : all_kernels()) {
    for (const CacheType type : kTypes) {
      for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
        Cache cache(*kernels, type, 40, 40);
        std::vector<float> k(kPositions * 40, 0.5f), v = k;
        k[7 * 40 + 3] = v[7 * 40 + 3] = bad;
        cache.keep(k, v);
        CHECK(!std::isfinite(cache.stored_keys()[7 * 40 + 3]));
        CHECK(!std::isfinite(cache.stored_values()[7 * cache.stride + 3]));
        CHECK(std::isfinite(cache.stored_values()[8 * cache.stride + 3]));
      }
    }
  }
}

void check_attention(const Kernels& kernels, const Cache& cache, std::size_t rows) {
  constexpr std::size_t kBegin = 3, kEnd = 70;
  const std::size_t dim = cache.dim, stride = cache.stride;
  Noise noise(dim * stride + rows);
  const std::vector<float> q = noise.floats(rows * dim);
  const std::vector<float> keys = cache.stored_keys(), values = cache.stored_values();
  std::vector<float> p = cache.scores(q, rows), out(rows * stride, 0.0f);
  const std::vector<float> raw = p;
  std::vector<double> totals;
  for (std::size_t r = 0; r < rows; ++r) {
    double top = -1e30, total = 0.0;
    for (std::size_t j = kBegin; j < kEnd; ++j) {
      double dot = 0.0;
      for (std::size_t d = 0; d < dim; ++d) {
        dot += static_cast<double>(q[r * dim + d]) * static_cast<double>(keys[j * dim + d]);
      }
      CHECK(near(raw[r * kScoreStride + j], dot, 1e-5));
      top = std::max(top, static_cast<double>(raw[r * kScoreStride + j]));
      total += std::exp(static_cast<double>(raw[r * kScoreStride + j]));
    }
    const Part part = kernels.softmax(p.data() + r * kScoreStride, kBegin, kEnd, kPositions);
    CHECK(near(part.top, top, 0.0) && near(part.sum, total * std::exp(-top), 1e-6));
    for (std::size_t j = 0; j < kPositions; ++j) {
      const bool seen = j >= kBegin && j < kEnd;  // what is hidden weighs exactly nothing
      const double e = seen ? std::exp(static_cast<double>(raw[r * kScoreStride + j]) - top) : 0.0;
      CHECK(near(p[r * kScoreStride + j], e, seen ? 1e-6 : 0.0));
    }
  }
  cache.kernel.weigh(p.data(), rows, cache.values, stride, kBegin, kEnd, out.data());
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t d = 0; d < stride; ++d) {
      double sum = 0.0;
      for (std::size_t j = kBegin; j < kEnd; ++j) {
        sum += static_cast<double>(p[r * kScoreStride + j]) *
               static_cast<double>(values[j * stride + d]);
      }
      CHECK(near(out[r * stride + d], sum, 1e-5));
    }
  }
  // The same bits for a row alone, and for positions taken in two goes.
  for (std::size_t r = 0; r < rows; ++r) {
    const std::vector<float> one(q.begin() + static_cast<std::ptrdiff_t>(r * dim),
                                 q.begin() + static_cast<std::ptrdiff_t>((r + 1) * dim));
    const std::vector<float> alone = cache.scores(one, 1);
    CHECK(std::memcmp(alone.data(), raw.data() + r * kScoreStride, kPositions * 4) == 0);
    std::vector<float> mixed(stride, 0.0f);
    for (const auto& [from, to] : {std::pair{kBegin, std::size_t{41}}, {std::size_t{41}, kEnd}}) {
      cache.kernel.weigh(p.data() + r * kScoreStride, 1, cache.values, stride, from, to,
                         mixed.data());
    }
    CHECK(std::memcmp(mixed.data(), out.data() + r * stride, stride * 4) == 0);
  }
}

TEST(attention_over_tiles) {
  for (const Kernels* kernels : all_kernels()) {
    for (const CacheType type : kTypes) {
      for (const std::size_t dim : {1u, 5u, 32u, 33u, 64u}) {
        for (const std::size_t v_dim : {3u, 16u, 48u, 64u, 80u}) {
          Noise noise(dim * v_dim);
          Cache cache(*kernels, type, dim, v_dim);
          cache.keep(noise.floats(kPositions * dim), noise.floats(kPositions * v_dim));
          for (std::size_t rows = 1; rows <= kQueryRows; ++rows) {
            check_attention(*kernels, cache, rows);
          }
        }
      }
    }
  }
}

TEST(softmax_far_apart) {
  for (const Kernels* kernels : all_kernels()) {
    std::vector<float> s(kTilePositions, -200.0f);
    s[4] = 50.0f;
    s[5] = -30.0f;
    s[6] = std::nanf("");
    const Part part = kernels->softmax(s.data(), 0, 6, kTilePositions);
    CHECK(near(part.top, 50.0, 0.0) && near(part.sum, 1.0, 0.0));
    CHECK(near(s[0], 0.0, 0.0) && near(s[4], 1.0, 0.0) && near(s[6], 0.0, 0.0));
    CHECK(near(static_cast<double>(s[5]) / std::exp(-80.0), 1.0, 1e-5));
    s[6] = std::nanf("");
    CHECK(std::isnan(kernels->softmax(s.data(), 0, 8, kTilePositions).sum));
  }
}

TEST(rotations) {
  for (const Kernels* kernels : all_kernels()) {
    for (const std::size_t half : {1u, 3u, 16u, 24u, 32u}) {
      Noise noise(half);
      std::vector<float> x = noise.floats(2 * half);
      const std::vector<float> before = x, cos = noise.floats(half), sin = noise.floats(half);
      kernels->rotate(x.data(), cos.data(), sin.data(), half);
      for (std::size_t i = 0; i < half; ++i) {
        const float a = before[i], b = before[i + half];
        const float low = a * cos[i] - b * sin[i], high = b * cos[i] + a * sin[i];
        CHECK(std::memcmp(&low, &x[i], 4) == 0 && std::memcmp(&high, &x[i + half], 4) == 0);
      }
    }
  }
}

}  // namespace
}  // namespace miudo
