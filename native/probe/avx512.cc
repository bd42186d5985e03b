// The probe for x86-64 with AVX-512 VNNI; only this file is compiled for it. Read next: loops.h.
#include <immintrin.h>

#include "probe/loops.h"

namespace miudo {
namespace {

// Enough to hide the latency of two units: 4 cycles each.
constexpr int kSums = 16;

std::uint64_t folded(__m512i sums) {
  std::uint64_t parts[8], all = 0;
  _mm512_storeu_si512(parts, sums);
  for (const std::uint64_t part : parts) all |= part;
  return all;
}

std::uint64_t read(const std::uint8_t* data, std::size_t bytes) {
  __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;
  for (std::size_t i = 0; i < bytes; i += 256) {
    a = _mm512_or_si512(a, _mm512_load_si512(data + i));
    b = _mm512_or_si512(b, _mm512_load_si512(data + i + 64));
    c = _mm512_or_si512(c, _mm512_load_si512(data + i + 128));
    d = _mm512_or_si512(d, _mm512_load_si512(data + i + 192));
  }
  return folded(_mm512_or_si512(_mm512_or_si512(a, b), _mm512_or_si512(c, d)));
}

std::uint64_t int8(std::size_t rounds) {
  __m512i sums[kSums], x = _mm512_set1_epi8(1), y = _mm512_set1_epi8(2);
  for (int i = 0; i < kSums; ++i) sums[i] = _mm512_set1_epi32(i);
  for (std::size_t round = 0; round < rounds; ++round) {
    __asm__ volatile("" : "+v"(x));
    for (int i = 0; i < kSums; ++i) sums[i] = _mm512_dpbusd_epi32(sums[i], x, y);
  }
  for (int i = 1; i < kSums; ++i) sums[0] = _mm512_add_epi32(sums[0], sums[i]);
  return folded(sums[0]);
}

std::uint64_t floats(std::size_t rounds) {
  __m512 sums[kSums], x = _mm512_set1_ps(0.5f), y = _mm512_set1_ps(0.25f);
  for (int i = 0; i < kSums; ++i) sums[i] = _mm512_set1_ps(static_cast<float>(i));
  for (std::size_t round = 0; round < rounds; ++round) {
    __asm__ volatile("" : "+v"(x));
    for (int i = 0; i < kSums; ++i) sums[i] = _mm512_fmadd_ps(sums[i], x, y);
  }
  for (int i = 1; i < kSums; ++i) sums[0] = _mm512_add_ps(sums[0], sums[i]);
  return folded(_mm512_castps_si512(sums[0]));
}

}  // namespace

extern const ProbeLoops kAvx512Loops;
const ProbeLoops kAvx512Loops = {"avx512vnni", read, int8, floats, kSums * 64 * 2.0,
                                 kSums * 16 * 2.0};

}  // namespace miudo
