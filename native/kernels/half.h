// float16 and bfloat16 bits to float, exactly, and back, half to even, in plain integer and float
// arithmetic.
// Static, because kernel files are compiled for newer processors: see kernels/packed.h.
#pragma once

#include <cstdint>
#include <cstring>

namespace miudo {

// Numbers of 16 bits, so that a pointer says what it leads to.
struct Half {
  std::uint16_t bits;
};
struct Bfloat {
  std::uint16_t bits;
};

static inline std::uint32_t bits_of_float(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

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

static inline Half half_of(float value) {
  const std::uint32_t sign = bits_of_float(value) >> 16 & 0x8000u;
  const std::uint32_t magnitude = bits_of_float(value) & 0x7FFFFFFFu;
  std::uint32_t half = 0x7C00u;
  if (magnitude > 0x7F800000u) {
    half = 0x7E00u;  // NaN
  } else if (magnitude < 0x38800000u) {
    // Below 2^-14 a float16 has steps of 2^-24, as float has from 0.5 on.
    half = bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3F000000u;
  } else if (magnitude < 0x477FF000u) {  // from 65520 on it is infinity
    half = (magnitude + 0xFFFu + (magnitude >> 13 & 1u) - (112u << 23)) >> 13;
  }
  return {static_cast<std::uint16_t>(sign | half)};
}

static inline Bfloat bfloat_of(float value) {
  const std::uint32_t bits = bits_of_float(value);
  const bool nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
  const std::uint32_t rounded = nan ? bits | 0x400000u : bits + 0x7FFFu + (bits >> 16 & 1u);
  return {static_cast<std::uint16_t>(rounded >> 16)};
}

static inline float bfloat_at(const std::uint8_t* p) {
  std::uint16_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return float_of_bits(static_cast<std::uint32_t>(bits) << 16);
}

}  // namespace miudo
