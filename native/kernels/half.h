// float16 bits to float, exactly, in plain integer and float arithmetic.
// Static, because kernel files are compiled for newer processors: see kernels/packed.h.
#pragma once

#include <cstdint>
#include <cstring>

namespace miudo {

static inline float float_of_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

static inline float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t rest = half & 0x7FFFu;
  if (rest >= 0x7C00u) {  // infinity, NaN
    return float_of_bits(sign | 0x7F800000u | (rest & 0x3FFu) << 13);
  }
  // The exponent is too small by 112; the product also makes subnormal halves right.
  const float magnitude = float_of_bits(rest << 13) * 0x1.0p112f;
  return sign != 0u ? -magnitude : magnitude;
}

}  // namespace miudo
