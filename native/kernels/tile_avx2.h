// The bytes of 16 rows x 4 columns with AVX2. The functions are those of tile_portable.h.
#pragma once

#include "kernels/packed.h"
#include "kernels/simd_avx2.h"
//
#include "kernels/wide_inl.h"

namespace miudo {
namespace {

constexpr std::size_t kFloatRows = 4;
constexpr std::size_t kInt8Rows = 4;

struct Bytes64 {
  __m256i lo, hi;
};

inline __m256i load_32(const std::uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline Bytes64 load_bytes64(const std::uint8_t* p) { return {load_32(p), load_32(p + 32)}; }
template <int kBits>
inline Bytes64 shift_right(const Bytes64& v) {
  if constexpr (kBits >= 0) {
    return {_mm256_srli_epi16(v.lo, kBits), _mm256_srli_epi16(v.hi, kBits)};
  } else {
    return {_mm256_slli_epi16(v.lo, -kBits), _mm256_slli_epi16(v.hi, -kBits)};
  }
}
inline Bytes64 mask_bytes(const Bytes64& v, int mask) {
  const __m256i m = _mm256_set1_epi8(static_cast<char>(mask));
  return {_mm256_and_si256(v.lo, m), _mm256_and_si256(v.hi, m)};
}
inline Bytes64 either(const Bytes64& a, const Bytes64& b) {
  return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)};
}
inline Bytes64 look_up(const std::int8_t* table, const Bytes64& v) {
  __m128i sixteen;
  std::memcpy(&sixteen, table, 16);
  const __m256i t = _mm256_broadcastsi128_si256(sixteen);
  return {_mm256_shuffle_epi8(t, v.lo), _mm256_shuffle_epi8(t, v.hi)};
}
template <int kByte, bool kSignedBytes>
inline F8 byte_of_lanes(__m256i v) {
  const __m256i top = _mm256_slli_epi32(v, 24 - 8 * kByte);
  return to_floats({kSignedBytes ? _mm256_srai_epi32(top, 24) : _mm256_srli_epi32(top, 24)});
}
template <int kByte, bool kSignedBytes>
inline Wide wide_byte(const Bytes64& v) {
  return {byte_of_lanes<kByte, kSignedBytes>(v.lo), byte_of_lanes<kByte, kSignedBytes>(v.hi)};
}

inline Bytes64 filled_bytes64(int byte) {
  const __m256i v = _mm256_set1_epi8(static_cast<char>(byte));
  return {v, v};
}
inline Bytes64 picked(const Bytes64& places, const std::int8_t* x) {
  std::int64_t eight;
  std::memcpy(&eight, x, 8);
  const __m256i from = _mm256_set1_epi64x(eight), last = _mm256_set1_epi32(0x04040000);
  return {_mm256_shuffle_epi8(from, _mm256_or_si256(places.lo, last)),
          _mm256_shuffle_epi8(from, _mm256_or_si256(places.hi, last))};
}

enum class Values { kNibbles, kSmall, kSigned };

template <Values kValues>
struct Factor {
  explicit Factor(const Bytes64& v) : bytes(v) {}
  Bytes64 bytes;
};

// The instruction takes its first factor as unsigned, so x carries a weight's sign.
template <>
struct Factor<Values::kSigned> {
  explicit Factor(const Bytes64& v)
      : bytes(v), size{_mm256_abs_epi8(v.lo), _mm256_abs_epi8(v.hi)} {}
  Bytes64 bytes, size;
};

inline __m256i four_of(const std::int8_t* x) {
  std::int32_t four;
  std::memcpy(&four, x, 4);
  return _mm256_set1_epi32(four);
}

template <Values kValues>
struct Dots {
  static constexpr int kExcess = 0;
  __m256i lo = _mm256_setzero_si256(), hi = _mm256_setzero_si256();

  // Sums of two products fit 16 bits: 2 * 128 * 127. Of numbers below 16 all sixteen do.
  void add(const Factor<kValues>& w, const std::int8_t* x) {
    const __m256i four = four_of(x);
    if constexpr (kValues == Values::kNibbles) {
      lo = _mm256_add_epi16(lo, _mm256_maddubs_epi16(w.bytes.lo, four));
      hi = _mm256_add_epi16(hi, _mm256_maddubs_epi16(w.bytes.hi, four));
    } else if constexpr (kValues == Values::kSmall) {
      add_pairs(_mm256_maddubs_epi16(w.bytes.lo, four), _mm256_maddubs_epi16(w.bytes.hi, four));
    } else {
      add_pairs(_mm256_maddubs_epi16(w.size.lo, _mm256_sign_epi8(four, w.bytes.lo)),
                _mm256_maddubs_epi16(w.size.hi, _mm256_sign_epi8(four, w.bytes.hi)));
    }
  }
  void add_each(const Factor<kValues>& w, const Bytes64& x) {
    if constexpr (kValues == Values::kNibbles) {
      lo = _mm256_add_epi16(lo, _mm256_maddubs_epi16(w.bytes.lo, x.lo));
      hi = _mm256_add_epi16(hi, _mm256_maddubs_epi16(w.bytes.hi, x.hi));
    } else if constexpr (kValues == Values::kSmall) {
      add_pairs(_mm256_maddubs_epi16(w.bytes.lo, x.lo), _mm256_maddubs_epi16(w.bytes.hi, x.hi));
    } else {
      add_pairs(_mm256_maddubs_epi16(w.size.lo, _mm256_sign_epi8(x.lo, w.bytes.lo)),
                _mm256_maddubs_epi16(w.size.hi, _mm256_sign_epi8(x.hi, w.bytes.hi)));
    }
  }
  WideInt total() const {
    if constexpr (kValues != Values::kNibbles) return {{lo}, {hi}};
    const __m256i ones = _mm256_set1_epi16(1);
    return {{_mm256_madd_epi16(lo, ones)}, {_mm256_madd_epi16(hi, ones)}};
  }

 private:
  void add_pairs(__m256i low, __m256i high) {
    const __m256i ones = _mm256_set1_epi16(1);
    lo = _mm256_add_epi32(lo, _mm256_madd_epi16(low, ones));
    hi = _mm256_add_epi32(hi, _mm256_madd_epi16(high, ones));
  }
};

}  // namespace
}  // namespace miudo
