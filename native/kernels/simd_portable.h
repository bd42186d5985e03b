// Eight float lanes in plain C++ with 16-byte vector types: SSE2 on x86-64, NEON on aarch64.
// Included by one source file only; everything has internal linkage, so that code for one
// instruction set can never be linked into another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/half.h"

namespace miudo {
namespace {

typedef float V4 __attribute__((vector_size(16)));
typedef std::int32_t I4 __attribute__((vector_size(16)));

struct F8 {
  V4 lo, hi;
};

struct I8 {
  std::int32_t lane[8];
};

inline F8 load(const float* p) {
  F8 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
inline void store(float* p, F8 v) { std::memcpy(p, &v, sizeof(v)); }
inline F8 set1(float x) { return {V4{x, x, x, x}, V4{x, x, x, x}}; }
inline F8 add(F8 a, F8 b) { return {a.lo + b.lo, a.hi + b.hi}; }
inline F8 sub(F8 a, F8 b) { return {a.lo - b.lo, a.hi - b.hi}; }
inline F8 mul(F8 a, F8 b) { return {a.lo * b.lo, a.hi * b.hi}; }
inline F8 div(F8 a, F8 b) { return {a.lo / b.lo, a.hi / b.hi}; }
// a * b + c rounded once, as the processors with such an instruction do it: int8 rounding would
// make whole steps out of last bits that differ from one instruction set to the next. Through
// double the result differs from the fused one about once in 2^29 times.
inline F8 fma(F8 a, F8 b, F8 c) {
  float x[8], y[8], z[8];
  store(x, a);
  store(y, b);
  store(z, c);
  for (std::size_t i = 0; i < 8; ++i) {
#if defined(__FP_FAST_FMAF)
    z[i] = __builtin_fmaf(x[i], y[i], z[i]);
#else
    z[i] = static_cast<float>(static_cast<double>(x[i]) * static_cast<double>(y[i]) +
                              static_cast<double>(z[i]));
#endif
  }
  return load(z);
}
// As the x86 instructions: the second operand where either is NaN.
inline F8 max(F8 a, F8 b) { return {a.lo > b.lo ? a.lo : b.lo, a.hi > b.hi ? a.hi : b.hi}; }
inline F8 min(F8 a, F8 b) { return {a.lo < b.lo ? a.lo : b.lo, a.hi < b.hi ? a.hi : b.hi}; }
// Sums of any order: for numbers whose sum is exact, or none at all.
inline float sum_exact(F8 a) {
  const V4 s = a.lo + a.hi;
  return (s[0] + s[2]) + (s[1] + s[3]);
}
inline float greatest_lane(F8 a) {
  const V4 s = a.lo > a.hi ? a.lo : a.hi;
  const float x = s[0] > s[2] ? s[0] : s[2], y = s[1] > s[3] ? s[1] : s[3];
  return x > y ? x : y;
}
inline F8 negate(F8 a) { return {-a.lo, -a.hi}; }
inline F8 abs(F8 a) { return {(V4)((I4)a.lo & 0x7FFFFFFF), (V4)((I4)a.hi & 0x7FFFFFFF)}; }

// 2^n, where magic = 1.5 * 2^23 + n: the low bits of the sum are n itself.
inline F8 pow2_of_magic(F8 magic) {
  typedef std::uint32_t U4 __attribute__((vector_size(16)));
  return {(V4)(((U4)magic.lo + 127u) << 23), (V4)(((U4)magic.hi + 127u) << 23)};
}
// value where x >= limit, else 0.
inline F8 zero_below(F8 value, F8 x, float limit) {
  const V4 l = {limit, limit, limit, limit};
  return {(V4)((I4)value.lo & (I4)(x.lo >= l)), (V4)((I4)value.hi & (I4)(x.hi >= l))};
}

inline F8 load_half(const std::uint8_t* p) {
  float out[8];
  for (std::size_t i = 0; i < 8; ++i) {
    std::uint16_t half;
    std::memcpy(&half, p + 2 * i, 2);
    out[i] = half_to_float(half);
  }
  return load(out);
}
inline F8 load_bfloat(const std::uint8_t* p) {
  float out[8];
  for (std::size_t i = 0; i < 8; ++i) out[i] = bfloat_at(p + 2 * i);
  return load(out);
}
inline void store_half(Half* p, F8 v) {
  float in[8];
  store(in, v);
  for (std::size_t i = 0; i < 8; ++i) p[i] = half_of(in[i]);
}
// Whole numbers from -127 to 127.
inline void store_int8(std::int8_t* p, F8 v) {
  float in[8];
  store(in, v);
  for (std::size_t i = 0; i < 8; ++i) p[i] = static_cast<std::int8_t>(in[i]);
}

inline I8 set1_int(std::int32_t x) { return {{x, x, x, x, x, x, x, x}}; }
inline I8 sub(I8 a, const I8& b) {
  for (std::size_t i = 0; i < 8; ++i) a.lane[i] -= b.lane[i];
  return a;
}
template <int kBits>
inline I8 shift_left(I8 a) {
  for (std::int32_t& lane : a.lane) lane *= 1 << kBits;
  return a;
}
// Eight bytes as numbers from 0 to 255, and what their bits say.
inline I8 load_uint8(const std::uint8_t* p) {
  I8 out;
  for (std::size_t i = 0; i < 8; ++i) out.lane[i] = p[i];
  return out;
}
inline I8 shift_right(I8 a, int bits) {
  for (std::int32_t& lane : a.lane) lane >>= bits;
  return a;
}
inline I8 low_bits(I8 a, int mask) {
  for (std::int32_t& lane : a.lane) lane &= mask;
  return a;
}
inline I8 with_high(I8 low, const I8& high, int bits) {
  for (std::size_t i = 0; i < 8; ++i) low.lane[i] |= high.lane[i] << bits;
  return low;
}
// Lane i is bit i.
inline I8 bits_of(std::uint8_t byte) {
  I8 out;
  for (int i = 0; i < 8; ++i) out.lane[i] = byte >> i & 1;
  return out;
}
inline F8 to_floats(const I8& v) {
  float out[8];
  for (std::size_t i = 0; i < 8; ++i) out[i] = static_cast<float>(v.lane[i]);
  return load(out);
}
inline I8 load_int8(const std::uint8_t* p) {
  I8 out;
  for (std::size_t i = 0; i < 8; ++i) out.lane[i] = static_cast<std::int8_t>(p[i]);
  return out;
}

}  // namespace
}  // namespace miudo
