// float16 and bfloat16 bits to float, exactly, in plain integer and float arithmetic.
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
  // The exponent is too small by 112, by 224 for infinity and NaN.
  const std::uint32_t bits = (rest << 13) + (rest >= 0x7C00u ? 224u << 23 : 112u << 23);
  // Subnormal halves by way of a whole number: subnormal floats are slow.
  const float tiny = static_cast<float>(static_cast<std::int32_t>(rest)) * 0x1.0p-24f;
  const float magnitude = rest < 0x400u ? tiny : float_of_bits(bits);
  return sign != 0u ? -magnitude : magnitude;
}

static inline float half_at(const std::uint8_t* p) {
  std::uint16_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return half_to_float(bits);
}

static inline float bfloat_at(const std::uint8_t* p) {
  std::uint16_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return float_of_bits(static_cast<std::uint32_t>(bits) << 16);
}

}  // namespace miudo
