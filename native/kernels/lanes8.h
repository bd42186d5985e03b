// What kernels written for lanes of any width stand on, eight wide: F8 under the names that
// kernels/lanes16.h gives sixteen. Comes after kernels/simd_avx2.h,
// kernels/simd_neon.h or kernels/simd_portable.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/half.h"
#include "kernels/kernels.h"

namespace miudo {
namespace {

using Lanes = F8;
constexpr std::size_t kWidth = 8;
constexpr int kRegisterRows = 4;  // query rows whose sums stay in registers, two vectors each

inline Lanes spread(float x) { return set1(x); }

inline Lanes load_lanes(const float* p) { return load(p); }
inline Lanes load_lanes(const Half* p) {
  return load_half(reinterpret_cast<const std::uint8_t*>(p));
}
inline Lanes load_lanes(const Bfloat* p) {
  return load_bfloat(reinterpret_cast<const std::uint8_t*>(p));
}
inline Lanes load_lanes(const std::int8_t* p) {
  return to_floats(load_int8(reinterpret_cast<const std::uint8_t*>(p)));
}

// The low and the high four bits of as many bytes as there are lanes.
struct LanePair {
  Lanes low, high;
};
inline LanePair load_nibbles(const std::uint8_t* p) {
  const I8 bytes = load_uint8(p);
  return {to_floats(low_bits(bytes, 15)), to_floats(shift_right(bytes, 4))};
}

inline void store_lanes(float* p, Lanes v) { store(p, v); }
inline void store_lanes(Half* p, Lanes v) { store_half(p, v); }
inline void store_lanes(std::int8_t* p, Lanes v) { store_int8(p, v); }

inline Lanes round_lanes(Lanes x) { return sub(add(x, set1(kRoundMagic)), set1(kRoundMagic)); }
// p * 2^n for whole n from -127 on, where it is 0.
inline Lanes times_pow2(Lanes p, Lanes n) {
  return mul(p, pow2_of_magic(add(n, set1(kRoundMagic))));
}

}  // namespace
}  // namespace miudo
