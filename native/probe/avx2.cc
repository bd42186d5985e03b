// The probe for x86-64 with AVX2 and FMA; only this file is compiled for them. Read next: loops.h.
#include <immintrin.h>

#include "probe/loops.h"

namespace miudo {
namespace {

// Enough to hide latency, few enough for 16 registers.
constexpr int kSums = 10, kIntSums = 6;

std::uint64_t folded(__m256i sums) {
  std::uint64_t parts[4];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(parts), sums);
  return parts[0] | parts[1] | parts[2] | parts[3];
}

std::uint64_t read(const std::uint8_t* data, std::size_t bytes) {
  __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;
  for (std::size_t i = 0; i < bytes; i += 128) {
    const auto* at = reinterpret_cast<const __m256i*>(data + i);
    a = _mm256_or_si256(a, _mm256_load_si256(at));
    b = _mm256_or_si256(b, _mm256_load_si256(at + 1));
    c = _mm256_or_si256(c, _mm256_load_si256(at + 2));
    d = _mm256_or_si256(d, _mm256_load_si256(at + 3));
  }
  return folded(_mm256_or_si256(_mm256_or_si256(a, b), _mm256_or_si256(c, d)));
}

// Three instructions for 32 products: without VNNI there is no shorter way to 32-bit sums.
std::uint64_t int8(std::size_t rounds) {
  const __m256i y = _mm256_set1_epi8(2), ones = _mm256_set1_epi16(1);
  __m256i sums[kIntSums], x = _mm256_set1_epi8(1);
  for (int i = 0; i < kIntSums; ++i) sums[i] = _mm256_set1_epi32(i);
  for (std::size_t round = 0; round < rounds; ++round) {
    for (int i = 0; i < kIntSums; ++i) {
      __asm__ volatile("" : "+x"(x));  // each time: equal products would be made once
      const __m256i pairs = _mm256_maddubs_epi16(x, y);
      sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(pairs, ones));
    }
  }
  for (int i = 1; i < kIntSums; ++i) sums[0] = _mm256_add_epi32(sums[0], sums[i]);
  return folded(sums[0]);
}

std::uint64_t floats(std::size_t rounds) {
  __m256 sums[kSums], x = _mm256_set1_ps(0.5f), y = _mm256_set1_ps(0.25f);
  for (int i = 0; i < kSums; ++i) sums[i] = _mm256_set1_ps(static_cast<float>(i));
  for (std::size_t round = 0; round < rounds; ++round) {
    __asm__ volatile("" : "+x"(x));
    for (int i = 0; i < kSums; ++i) sums[i] = _mm256_fmadd_ps(sums[i], x, y);
  }
  for (int i = 1; i < kSums; ++i) sums[0] = _mm256_add_ps(sums[0], sums[i]);
  return folded(_mm256_castps_si256(sums[0]));
}

}  // namespace

extern const ProbeLoops kAvx2Loops;
const ProbeLoops kAvx2Loops = {"avx2", read, int8, floats, kIntSums * 32 * 2.0,
                                 kSums * 8 * 2.0};

}  // namespace miudo
