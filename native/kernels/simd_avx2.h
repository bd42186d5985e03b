// Eight float lanes with AVX2, FMA and F16C. The functions are those of simd_portable.h.
// Included by one source file only, the one compiled with these instructions switched on.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/half.h"

namespace miudo {
namespace {

struct F8 {
  __m256 v;
};

struct I8 {
  __m256i v;
};

inline F8 load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline void store(float* p, F8 v) { _mm256_storeu_ps(p, v.v); }
inline F8 set1(float x) { return {_mm256_set1_ps(x)}; }
inline F8 add(F8 a, F8 b) { return {_mm256_add_ps(a.v, b.v)}; }
inline F8 sub(F8 a, F8 b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline F8 mul(F8 a, F8 b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline F8 div(F8 a, F8 b) { return {_mm256_div_ps(a.v, b.v)}; }
inline F8 fma(F8 a, F8 b, F8 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline F8 max(F8 a, F8 b) { return {_mm256_max_ps(a.v, b.v)}; }
inline F8 min(F8 a, F8 b) { return {_mm256_min_ps(a.v, b.v)}; }
inline F8 negate(F8 a) { return {_mm256_xor_ps(a.v, _mm256_set1_ps(-0.0f))}; }
inline F8 abs(F8 a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }

// Sums of any order: for numbers whose sum is exact, or none at all.
inline float sum_exact(F8 a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
inline float greatest_lane(F8 a) {
  __m128 s = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_max_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

inline F8 pow2_of_magic(F8 magic) {
  const __m256i bits = _mm256_add_epi32(_mm256_castps_si256(magic.v), _mm256_set1_epi32(127));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(bits, 23))};
}
inline F8 zero_below(F8 value, F8 x, float limit) {
  return {_mm256_and_ps(value.v, _mm256_cmp_ps(x.v, _mm256_set1_ps(limit), _CMP_GE_OQ))};
}

inline F8 load_half(const std::uint8_t* p) {
  __m128i bits;
  std::memcpy(&bits, p, 16);
  return {_mm256_cvtph_ps(bits)};
}
inline F8 load_bfloat(const std::uint8_t* p) {
  __m128i bits;
  std::memcpy(&bits, p, 16);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
}
inline void store_half(Half* p, F8 v) {
  const __m128i bits = _mm256_cvtps_ph(v.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  std::memcpy(p, &bits, 16);
}
inline void store_int8(std::int8_t* p, F8 v) {
  const __m256i wide = _mm256_cvtps_epi32(v.v);
  const __m128i words =
      _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  const __m128i bytes = _mm_packs_epi16(words, words);
  std::memcpy(p, &bytes, 8);
}

inline I8 set1_int(std::int32_t x) { return {_mm256_set1_epi32(x)}; }
inline I8 sub(I8 a, I8 b) { return {_mm256_sub_epi32(a.v, b.v)}; }
template <int kBits>
inline I8 shift_left(I8 a) {
  return {_mm256_slli_epi32(a.v, kBits)};
}
inline I8 load_uint8(const std::uint8_t* p) {
  std::int64_t bytes;
  std::memcpy(&bytes, p, 8);
  return {_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes))};
}
inline I8 load_int8(const std::uint8_t* p) {
  std::int64_t bytes;
  std::memcpy(&bytes, p, 8);
  return {_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(bytes))};
}
inline I8 shift_right(I8 a, int bits) { return {_mm256_srli_epi32(a.v, bits)}; }
inline I8 low_bits(I8 a, int mask) { return {_mm256_and_si256(a.v, _mm256_set1_epi32(mask))}; }
inline F8 to_floats(I8 v) { return {_mm256_cvtepi32_ps(v.v)}; }

}  // namespace
}  // namespace miudo
