// The bytes of 16 rows x 4 columns with NEON's dot product. The functions are those of
// tile_portable.h.
#pragma once

#include "kernels/packed.h"
#include "kernels/simd_neon.h"
//
#include "kernels/wide_inl.h"

namespace miudo {
namespace {

constexpr std::size_t kFloatRows = 4;
constexpr std::size_t kInt8Rows = 4;
constexpr std::size_t kVectorsOfLine = 4;  // vectors that hold a line: four rows each

struct Bytes64 {
  uint8x16_t v[kVectorsOfLine];
};

template <typename F>
inline Bytes64 each_part(const F& f) {
  return {{f(0), f(1), f(2), f(3)}};
}

inline Bytes64 load_bytes64(const std::uint8_t* p) {
  return each_part([&](int i) { return vld1q_u8(p + 16 * i); });
}
template <int kBits>
inline Bytes64 shift_right(const Bytes64& a) {
  if constexpr (kBits == 0) return a;
  return each_part([&](int i) {
    if constexpr (kBits > 0) return vshrq_n_u8(a.v[i], kBits);
    return vshlq_n_u8(a.v[i], kBits < 0 ? -kBits : 0);
  });
}
inline Bytes64 mask_bytes(const Bytes64& a, int mask) {
  const uint8x16_t m = vdupq_n_u8(static_cast<std::uint8_t>(mask));
  return each_part([&](int i) { return vandq_u8(a.v[i], m); });
}
inline Bytes64 either(const Bytes64& a, const Bytes64& b) {
  return each_part([&](int i) { return vorrq_u8(a.v[i], b.v[i]); });
}
inline Bytes64 look_up(const std::int8_t* table, const Bytes64& a) {
  const uint8x16_t t = vreinterpretq_u8_s8(vld1q_s8(table));
  return each_part([&](int i) { return vqtbl1q_u8(t, a.v[i]); });
}
template <int kByte, bool kSignedBytes>
inline float32x4_t byte_of_lanes(uint8x16_t a) {
  const uint32x4_t top = vshlq_n_u32(vreinterpretq_u32_u8(a), 24 - 8 * kByte);
  if constexpr (kSignedBytes) {
    return vcvtq_f32_s32(vshrq_n_s32(vreinterpretq_s32_u32(top), 24));
  } else {
    return vcvtq_f32_u32(vshrq_n_u32(top, 24));
  }
}
template <int kByte, bool kSignedBytes>
inline Wide wide_byte(const Bytes64& a) {
  const auto part = [&](int i) { return byte_of_lanes<kByte, kSignedBytes>(a.v[i]); };
  return {{part(0), part(1)}, {part(2), part(3)}};
}

inline Bytes64 filled_bytes64(int byte) {
  return each_part([&](int) { return vdupq_n_u8(static_cast<std::uint8_t>(byte)); });
}
inline Bytes64 picked(const Bytes64& places, const std::int8_t* x) {
  const uint8x8_t eight = vreinterpret_u8_s8(vld1_s8(x));
  const uint8x16_t from = vcombine_u8(eight, eight);
  const uint8x16_t last = vreinterpretq_u8_u32(vdupq_n_u32(0x04040000u));
  return each_part([&](int i) { return vqtbl1q_u8(from, vorrq_u8(places.v[i], last)); });
}

enum class Values { kNibbles, kSmall, kSigned };

// Numbers below 64 are signed bytes as well as any.
template <Values kValues>
struct Factor {
  explicit Factor(const Bytes64& a) {
    for (std::size_t i = 0; i < kVectorsOfLine; ++i) v[i] = vreinterpretq_s8_u8(a.v[i]);
  }
  int8x16_t v[kVectorsOfLine];
};

template <Values kValues>
struct Dots {
  static constexpr int kExcess = 0;
  int32x4_t v[kVectorsOfLine] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};

  void add(const Factor<kValues>& w, const std::int8_t* x) {
    std::int32_t four;
    std::memcpy(&four, x, 4);
    const int8x16_t each = vreinterpretq_s8_s32(vdupq_n_s32(four));
    for (std::size_t i = 0; i < kVectorsOfLine; ++i) v[i] = vdotq_s32(v[i], w.v[i], each);
  }
  void add_each(const Factor<kValues>& w, const Bytes64& x) {
    for (std::size_t i = 0; i < kVectorsOfLine; ++i) {
      v[i] = vdotq_s32(v[i], w.v[i], vreinterpretq_s8_u8(x.v[i]));
    }
  }
  WideInt total() const { return {{v[0], v[1]}, {v[2], v[3]}}; }
};

}  // namespace
}  // namespace miudo
