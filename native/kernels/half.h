// float16 and bfloat16 bits to float, exactly, in plain integer and float arithmetic.
#pragma once

#include <bit>
#include <cstdint>

namespace miudo {

inline float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t rest = half & 0x7FFFu;
  if (rest >= 0x7C00u) {  // infinity, NaN
    return std::bit_cast<float>(sign | 0x7F800000u | (rest & 0x3FFu) << 13);
  }
  // The exponent is too small by 112; the product also makes subnormal halves right.
  const float magnitude = std::bit_cast<float>(rest << 13) * 0x1.0p112f;
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(magnitude));
}

inline float bfloat_to_float(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

}  // namespace miudo
