// The bytes of 16 rows x 4 columns in plain C++. The functions are those of all tile_*.h.
#pragma once

#include "kernels/packed.h"
#include "kernels/simd_portable.h"
//
#include "kernels/wide_inl.h"

namespace miudo {
namespace {

constexpr std::size_t kFloatRows = 4;  // positions that share a weight load: floats
constexpr std::size_t kInt8Rows = 4;   // and int8

struct Bytes64 {
  std::uint8_t b[kLine];
};

inline Bytes64 load_bytes64(const std::uint8_t* p) {
  Bytes64 v;
  std::memcpy(v.b, p, kLine);
  return v;
}
// Every byte to the right by kBits, or to the left by -kBits; bits of a neighbour may come in.
template <int kBits>
inline Bytes64 shift_right(Bytes64 v) {
  for (std::uint8_t& b : v.b) {
    b = static_cast<std::uint8_t>(kBits >= 0 ? b >> (kBits & 7) : b << (-kBits & 7));
  }
  return v;
}
inline Bytes64 mask_bytes(Bytes64 v, int mask) {
  for (std::uint8_t& b : v.b) b = static_cast<std::uint8_t>(b & mask);
  return v;
}
inline Bytes64 either(Bytes64 a, const Bytes64& b) {
  for (std::size_t i = 0; i < kLine; ++i) a.b[i] = static_cast<std::uint8_t>(a.b[i] | b.b[i]);
  return a;
}
// table[number], signed, of numbers below 16.
inline Bytes64 look_up(const std::int8_t* table, Bytes64 v) {
  for (std::uint8_t& b : v.b) b = static_cast<std::uint8_t>(table[b]);
  return v;
}
// Byte kByte of each of the 16 lanes of 4 bytes, as a number.
template <int kByte, bool kSignedBytes>
inline Wide wide_byte(const Bytes64& v) {
  std::uint8_t out[kTileRows];
  for (std::size_t i = 0; i < kTileRows; ++i) out[i] = v.b[4 * i + kByte];
  if constexpr (kSignedBytes) return wide_int8(out);
  return wide_uint8(out);
}

inline Bytes64 filled_bytes64(int byte) {
  Bytes64 v;
  std::memset(v.b, byte, kLine);
  return v;
}
// Of eight bytes x those at places below 4: two bytes of a lane take theirs from the first four,
// two from the last.
inline Bytes64 picked(const Bytes64& places, const std::int8_t* x) {
  Bytes64 v;
  for (std::size_t i = 0; i < kLine; ++i) {
    v.b[i] = static_cast<std::uint8_t>(x[places.b[i] + i % 4 / 2 * 4]);
  }
  return v;
}

// What weights may be: below 16, below 64, or signed bytes.
enum class Values { kNibbles, kSmall, kSigned };

template <Values kValues>
struct Factor {
  explicit Factor(const Bytes64& v) : bytes(v) {}
  Bytes64 bytes;
};

// A dot product a lane, of at most 8 times 4 bytes; |x| <= 127. total() is too large by kExcess
// times the sum of all x.
template <Values kValues>
struct Dots {
  static constexpr int kExcess = 0;
  std::int32_t lane[kTileRows] = {};

  void add(const Factor<kValues>& w, const std::int8_t* x) {
    for (std::size_t i = 0; i < kTileRows; ++i) {
      const std::uint8_t* b = w.bytes.b + 4 * i;
      if constexpr (kValues == Values::kSigned) {
        lane[i] += static_cast<std::int8_t>(b[0]) * x[0] + static_cast<std::int8_t>(b[1]) * x[1] +
                   static_cast<std::int8_t>(b[2]) * x[2] + static_cast<std::int8_t>(b[3]) * x[3];
      } else {
        lane[i] += b[0] * x[0] + b[1] * x[1] + b[2] * x[2] + b[3] * x[3];
      }
    }
  }
  // The same with bytes of x for every lane.
  void add_each(const Factor<kValues>& w, const Bytes64& x) {
    for (std::size_t i = 0; i < kTileRows; ++i) {
      for (std::size_t j = 4 * i; j < 4 * i + 4; ++j) {
        const int number = kValues == Values::kSigned ? static_cast<std::int8_t>(w.bytes.b[j])
                                                      : static_cast<int>(w.bytes.b[j]);
        lane[i] += number * static_cast<std::int8_t>(x.b[j]);
      }
    }
  }
  WideInt total() const {
    WideInt v;
    std::memcpy(&v, lane, sizeof(v));
    return v;
  }
};

}  // namespace
}  // namespace miudo
