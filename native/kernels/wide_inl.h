// Sixteen float lanes, one a row of a tile, as two times eight; AVX-512 has its own.
// Included after the eight lanes of an instruction set that has no wider ones.
#pragma once

#include <cstddef>
#include <cstdint>

namespace miudo {
namespace {

struct Wide {
  F8 lo, hi;
};
struct WideInt {
  I8 lo, hi;
};

inline Wide wide(float x) { return {set1(x), set1(x)}; }
inline Wide load_wide(const float* p) { return {load(p), load(p + 8)}; }
inline void store_wide(float* p, const Wide& v) {
  store(p, v.lo);
  store(p + 8, v.hi);
}
inline Wide wide_floats(const std::uint8_t* p) {
  Wide v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
inline Wide wide_half(const std::uint8_t* p) { return {load_half(p), load_half(p + 16)}; }
inline Wide wide_bfloat(const std::uint8_t* p) { return {load_bfloat(p), load_bfloat(p + 16)}; }
inline Wide wide_uint8(const std::uint8_t* p) {
  return {to_floats(load_uint8(p)), to_floats(load_uint8(p + 8))};
}
inline Wide wide_int8(const std::uint8_t* p) {
  return {to_floats(load_int8(p)), to_floats(load_int8(p + 8))};
}
// The low (kFrom 0) or high (kFrom 4) four bits of 16 bytes.
template <int kFrom>
inline Wide wide_nibbles(const std::uint8_t* p) {
  std::uint8_t part[kTileRows];
  for (std::size_t i = 0; i < kTileRows; ++i) part[i] = p[i] >> kFrom & 15u;
  return wide_uint8(part);
}
inline Wide add(const Wide& a, const Wide& b) { return {add(a.lo, b.lo), add(a.hi, b.hi)}; }
inline Wide sub(const Wide& a, const Wide& b) { return {sub(a.lo, b.lo), sub(a.hi, b.hi)}; }
inline Wide mul(const Wide& a, const Wide& b) { return {mul(a.lo, b.lo), mul(a.hi, b.hi)}; }
inline Wide fma(const Wide& a, const Wide& b, const Wide& c) {
  return {fma(a.lo, b.lo, c.lo), fma(a.hi, b.hi, c.hi)};
}
inline Wide negate(const Wide& a) { return {negate(a.lo), negate(a.hi)}; }

inline WideInt whole(std::int32_t x) { return {set1_int(x), set1_int(x)}; }
inline WideInt sub(const WideInt& a, const WideInt& b) {
  return {sub(a.lo, b.lo), sub(a.hi, b.hi)};
}
template <int kBits>
inline WideInt shift_left(const WideInt& a) {
  return {shift_left<kBits>(a.lo), shift_left<kBits>(a.hi)};
}
inline Wide to_wide(const WideInt& v) { return {to_floats(v.lo), to_floats(v.hi)}; }

}  // namespace
}  // namespace miudo
