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
inline Lanes times_pow2(Lanes p, Lanes n) {
  const __mmask16 above = _mm512_cmp_ps_mask(n.v, _mm512_set1_ps(-127.0f), _CMP_NLE_UQ);
  return {_mm512_maskz_scalef_ps(above, p.v, n.v)};
}

}  // namespace
}  // namespace miudo
