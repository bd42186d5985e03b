// The bytes of 16 rows x 4 columns, and 16 float lanes, with AVX-512 and VNNI. The functions are
// those of tile_portable.h and wide_inl.h.
#pragma once

#include "kernels/packed.h"
#include "kernels/simd_avx2.h"

namespace miudo {
namespace {

constexpr std::size_t kFloatRows = 8;
constexpr std::size_t kInt8Rows = 8;

struct Wide {
  __m512 v;
};
struct WideInt {
  __m512i v;
};

inline Wide wide(float x) { return {_mm512_set1_ps(x)}; }
inline Wide load_wide(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store_wide(float* p, Wide v) { _mm512_storeu_ps(p, v.v); }
inline Wide wide_floats(const std::uint8_t* p) { return {_mm512_loadu_ps(p)}; }
inline __m256i load_32(const std::uint8_t* p) {
  __m256i bits;
  std::memcpy(&bits, p, sizeof(bits));
  return bits;
}
inline __m128i load_16(const std::uint8_t* p) {
  __m128i bits;
  std::memcpy(&bits, p, sizeof(bits));
  return bits;
}
inline Wide wide_half(const std::uint8_t* p) { return {_mm512_cvtph_ps(load_32(p))}; }
inline Wide wide_bfloat(const std::uint8_t* p) {
  const __m512i bits = _mm512_slli_epi32(_mm512_cvtepu16_epi32(load_32(p)), 16);
  return {_mm512_castsi512_ps(bits)};
}
inline Wide wide_uint8(const std::uint8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(load_16(p)))};
}
inline Wide wide_int8(const std::uint8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_16(p)))};
}
template <int kFrom>
inline Wide wide_nibbles(const std::uint8_t* p) {
  const __m512i numbers = _mm512_srli_epi32(_mm512_cvtepu8_epi32(load_16(p)), kFrom);
  return {_mm512_cvtepi32_ps(_mm512_and_si512(numbers, _mm512_set1_epi32(15)))};
}
inline Wide add(Wide a, Wide b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Wide sub(Wide a, Wide b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Wide mul(Wide a, Wide b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Wide fma(Wide a, Wide b, Wide c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Wide negate(Wide a) { return {_mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f))}; }

inline WideInt whole(std::int32_t x) { return {_mm512_set1_epi32(x)}; }
inline WideInt sub(WideInt a, WideInt b) { return {_mm512_sub_epi32(a.v, b.v)}; }
template <int kBits>
inline WideInt shift_left(WideInt a) {
  return {_mm512_slli_epi32(a.v, kBits)};
}
inline Wide to_wide(WideInt v) { return {_mm512_cvtepi32_ps(v.v)}; }

struct Bytes64 {
  __m512i v;
};

inline Bytes64 load_bytes64(const std::uint8_t* p) { return {_mm512_loadu_si512(p)}; }
template <int kBits>
inline Bytes64 shift_right(Bytes64 a) {
  if constexpr (kBits >= 0) {
    return {_mm512_srli_epi16(a.v, kBits)};
  } else {
    return {_mm512_slli_epi16(a.v, -kBits)};
  }
}
inline Bytes64 mask_bytes(Bytes64 a, int mask) {
  return {_mm512_and_si512(a.v, _mm512_set1_epi8(static_cast<char>(mask)))};
}
inline Bytes64 either(Bytes64 a, Bytes64 b) { return {_mm512_or_si512(a.v, b.v)}; }
inline Bytes64 look_up(const std::int8_t* table, Bytes64 a) {
  __m128i sixteen;
  std::memcpy(&sixteen, table, 16);
  return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(sixteen), a.v)};
}
template <int kByte, bool kSignedBytes>
inline Wide wide_byte(Bytes64 a) {
  const __m512i top = _mm512_slli_epi32(a.v, 24 - 8 * kByte);
  return {_mm512_cvtepi32_ps(kSignedBytes ? _mm512_srai_epi32(top, 24)
                                          : _mm512_srli_epi32(top, 24))};
}

inline Bytes64 filled_bytes64(int byte) { return {_mm512_set1_epi8(static_cast<char>(byte))}; }
inline Bytes64 picked(Bytes64 places, const std::int8_t* x) {
  std::int64_t eight;
  std::memcpy(&eight, x, 8);
  const __m512i at = _mm512_or_si512(places.v, _mm512_set1_epi32(0x04040000));
  return {_mm512_shuffle_epi8(_mm512_set1_epi64(eight), at)};
}

enum class Values { kNibbles, kSmall, kSigned };

// The instruction takes its first factor as unsigned: signed bytes are raised by 128.
template <Values kValues>
struct Factor {
  explicit Factor(Bytes64 a) : v(a.v) {
    if constexpr (kValues == Values::kSigned) v = _mm512_xor_si512(v, _mm512_set1_epi8(-128));
  }
  __m512i v;
};

template <Values kValues>
struct Dots {
  static constexpr int kExcess = kValues == Values::kSigned ? 128 : 0;
  __m512i v = _mm512_setzero_si512();

  void add(const Factor<kValues>& w, const std::int8_t* x) {
    std::int32_t four;
    std::memcpy(&four, x, 4);
    v = _mm512_dpbusd_epi32(v, w.v, _mm512_set1_epi32(four));
  }
  void add_each(const Factor<kValues>& w, Bytes64 x) { v = _mm512_dpbusd_epi32(v, w.v, x.v); }
  WideInt total() const { return {v}; }
};

}  // namespace
}  // namespace miudo
