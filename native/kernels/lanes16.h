// What kernels written for lanes of any width stand on, sixteen wide with AVX-512: the functions
// are those of kernels/lanes8.h. Comes after kernels/tile_avx512.h.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/half.h"

namespace miudo {
namespace {

using Lanes = Wide;
constexpr std::size_t kWidth = 16;
constexpr int kRegisterRows = 8;

inline Lanes spread(float x) { return wide(x); }
inline Lanes max(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Lanes min(Lanes a, Lanes b) { return {_mm512_min_ps(a.v, b.v)}; }

inline Lanes div(Lanes a, Lanes b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Lanes abs(Lanes a) { return {_mm512_andnot_ps(_mm512_set1_ps(-0.0f), a.v)}; }
inline F8 low_lanes(Lanes a) { return {_mm512_castps512_ps256(a.v)}; }
inline F8 high_lanes(Lanes a) { return {_mm512_extractf32x8_ps(a.v, 1)}; }
inline float sum_exact(Lanes a) { return sum_exact(add(low_lanes(a), high_lanes(a))); }
inline float greatest_lane(Lanes a) { return greatest_lane(max(low_lanes(a), high_lanes(a))); }

inline Lanes load_lanes(const float* p) { return load_wide(p); }
inline Lanes load_lanes(const Half* p) {
  return wide_half(reinterpret_cast<const std::uint8_t*>(p));
}
inline Lanes load_lanes(const Bfloat* p) {
  return wide_bfloat(reinterpret_cast<const std::uint8_t*>(p));
}
inline Lanes load_lanes(const std::int8_t* p) {
  return wide_int8(reinterpret_cast<const std::uint8_t*>(p));
}

struct LanePair {
  Lanes low, high;
};
// A table does what a mask and a conversion would: it looks at no more than four bits.
inline LanePair load_nibbles(const std::uint8_t* p) {
  const __m512 numbers = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i bytes = _mm512_cvtepu8_epi32(load_16(p));
  return {{_mm512_permutexvar_ps(bytes, numbers)},
          {_mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), numbers)}};
}

inline void store_lanes(float* p, Lanes v) { store_wide(p, v); }
inline void store_lanes(Half* p, Lanes v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(v.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
inline void store_lanes(std::int8_t* p, Lanes v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v.v)));
}

inline Lanes round_lanes(Lanes x) {
  return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline Lanes pow2_of_magic(Lanes magic) {
  const __m512i bits = _mm512_add_epi32(_mm512_castps_si512(magic.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(bits, 23))};
}
inline Lanes zero_below(Lanes value, Lanes x, float limit) {
  const __mmask16 kept = _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(limit), _CMP_GE_OQ);
  return {_mm512_maskz_mov_ps(kept, value.v)};
}
inline Lanes times_pow2(Lanes p, Lanes n) {
  const __mmask16 above = _mm512_cmp_ps_mask(n.v, _mm512_set1_ps(-127.0f), _CMP_NLE_UQ);
  return {_mm512_maskz_scalef_ps(above, p.v, n.v)};
}

}  // namespace
}  // namespace miudo
