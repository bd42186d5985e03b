// Eight float lanes with NEON and its dot product. The functions are those of simd_portable.h.
// Included by one source file only, the one compiled with these instructions switched on.
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/half.h"

namespace miudo {
namespace {

struct F8 {
  float32x4_t lo, hi;
};

struct I8 {
  int32x4_t lo, hi;
};

inline F8 load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
inline void store(float* p, F8 v) {
  vst1q_f32(p, v.lo);
  vst1q_f32(p + 4, v.hi);
}
inline F8 set1(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
inline F8 add(F8 a, F8 b) { return {vaddq_f32(a.lo, b.lo), vaddq_f32(a.hi, b.hi)}; }
inline F8 sub(F8 a, F8 b) { return {vsubq_f32(a.lo, b.lo), vsubq_f32(a.hi, b.hi)}; }
inline F8 mul(F8 a, F8 b) { return {vmulq_f32(a.lo, b.lo), vmulq_f32(a.hi, b.hi)}; }
inline F8 div(F8 a, F8 b) { return {vdivq_f32(a.lo, b.lo), vdivq_f32(a.hi, b.hi)}; }
inline F8 fma(F8 a, F8 b, F8 c) {
  return {vfmaq_f32(c.lo, a.lo, b.lo), vfmaq_f32(c.hi, a.hi, b.hi)};
}
// As the x86 instructions, which fmax is not: the second operand where either is NaN.
inline F8 max(F8 a, F8 b) {
  return {vbslq_f32(vcgtq_f32(a.lo, b.lo), a.lo, b.lo),
          vbslq_f32(vcgtq_f32(a.hi, b.hi), a.hi, b.hi)};
}
inline F8 min(F8 a, F8 b) {
  return {vbslq_f32(vcltq_f32(a.lo, b.lo), a.lo, b.lo),
          vbslq_f32(vcltq_f32(a.hi, b.hi), a.hi, b.hi)};
}
// Sums of any order: for numbers whose sum is exact, or none at all.
inline float sum_exact(F8 a) { return vaddvq_f32(vaddq_f32(a.lo, a.hi)); }
inline float greatest_lane(F8 a) { return vmaxvq_f32(vmaxq_f32(a.lo, a.hi)); }
inline F8 negate(F8 a) { return {vnegq_f32(a.lo), vnegq_f32(a.hi)}; }
inline F8 abs(F8 a) { return {vabsq_f32(a.lo), vabsq_f32(a.hi)}; }

inline float32x4_t pow2_of_magic(float32x4_t magic) {
  const int32x4_t bits = vaddq_s32(vreinterpretq_s32_f32(magic), vdupq_n_s32(127));
  return vreinterpretq_f32_s32(vshlq_n_s32(bits, 23));
}
inline F8 pow2_of_magic(F8 magic) { return {pow2_of_magic(magic.lo), pow2_of_magic(magic.hi)}; }
inline float32x4_t zero_below(float32x4_t value, float32x4_t x, float limit) {
  const uint32x4_t kept = vcgeq_f32(x, vdupq_n_f32(limit));
  return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(value), kept));
}
inline F8 zero_below(F8 value, F8 x, float limit) {
  return {zero_below(value.lo, x.lo, limit), zero_below(value.hi, x.hi, limit)};
}

inline F8 load_half(const std::uint8_t* p) {
  const float16x8_t half = vreinterpretq_f16_u8(vld1q_u8(p));
  return {vcvt_f32_f16(vget_low_f16(half)), vcvt_high_f32_f16(half)};
}
inline F8 load_bfloat(const std::uint8_t* p) {
  const uint16x8_t bits = vreinterpretq_u16_u8(vld1q_u8(p));
  return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(bits), 16)),
          vreinterpretq_f32_u32(vshll_high_n_u16(bits, 16))};
}
inline void store_half(Half* p, F8 v) {
  const float16x8_t half = vcvt_high_f16_f32(vcvt_f16_f32(v.lo), v.hi);
  std::memcpy(p, &half, 16);
}
inline void store_int8(std::int8_t* p, F8 v) {
  const int16x8_t words =
      vcombine_s16(vqmovn_s32(vcvtq_s32_f32(v.lo)), vqmovn_s32(vcvtq_s32_f32(v.hi)));
  vst1_s8(p, vqmovn_s16(words));
}

inline I8 set1_int(std::int32_t x) { return {vdupq_n_s32(x), vdupq_n_s32(x)}; }
inline I8 sub(I8 a, I8 b) { return {vsubq_s32(a.lo, b.lo), vsubq_s32(a.hi, b.hi)}; }
template <int kBits>
inline I8 shift_left(I8 a) {
  return {vshlq_n_s32(a.lo, kBits), vshlq_n_s32(a.hi, kBits)};
}
inline I8 load_uint8(const std::uint8_t* p) {
  const int16x8_t words = vreinterpretq_s16_u16(vmovl_u8(vld1_u8(p)));
  return {vmovl_s16(vget_low_s16(words)), vmovl_high_s16(words)};
}
inline I8 load_int8(const std::uint8_t* p) {
  const int16x8_t words = vmovl_s8(vreinterpret_s8_u8(vld1_u8(p)));
  return {vmovl_s16(vget_low_s16(words)), vmovl_high_s16(words)};
}
inline I8 shift_right(I8 a, int bits) {
  return {vshlq_s32(a.lo, vdupq_n_s32(-bits)), vshlq_s32(a.hi, vdupq_n_s32(-bits))};
}
inline I8 low_bits(I8 a, int mask) {
  return {vandq_s32(a.lo, vdupq_n_s32(mask)), vandq_s32(a.hi, vdupq_n_s32(mask))};
}
inline F8 to_floats(I8 v) { return {vcvtq_f32_s32(v.lo), vcvtq_f32_s32(v.hi)}; }

}  // namespace
}  // namespace miudo
