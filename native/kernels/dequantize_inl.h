// Blocks of files to floats, bit for bit as miudo/formats/blocks.py: one product of scale and
// small number, then at most one difference or sum, never fused.
// Internal linkage: every including file gets its own copy, on the lanes that it includes before.
#pragma once

#include <cstring>

#include "kernels/half.h"
#include "kernels/packed.h"

namespace miudo {
namespace {

// What the 4 bits of IQ4_NL and IQ4_XS, and of MXFP4, stand for.
constexpr float kIq4Values[] = {-127.0f, -104.0f, -83.0f, -65.0f, -49.0f, -35.0f, -22.0f, -10.0f,
                                1.0f,    13.0f,   25.0f,  38.0f,  53.0f,  69.0f,  89.0f,  113.0f};
constexpr float kFp4Values[] = {0.0f, 1.0f,  2.0f,  3.0f,  4.0f,  6.0f,  8.0f,  12.0f,
                                0.0f, -1.0f, -2.0f, -3.0f, -4.0f, -6.0f, -8.0f, -12.0f};

// Eight small numbers: those bits of eight bytes that `mask` has after a shift to the right.
inline I8 plane(const std::uint8_t* p, std::size_t shift, int mask) {
  return low_bits(shift_right(load_uint8(p), static_cast<int>(shift)), mask);
}

// What a type makes of eight numbers: (number - zero) * scale, or number * scale + offset.
struct FromZero {
  F8 zero, scale;
  F8 operator()(const I8& q) const { return mul(sub(to_floats(q), zero), scale); }
};
struct FromOffset {
  F8 scale, offset;
  F8 operator()(const I8& q) const { return add(mul(to_floats(q), scale), offset); }
};
inline FromZero from_zero(float zero, float scale) { return {set1(zero), set1(scale)}; }
inline FromOffset from_offset(float scale, float offset) { return {set1(scale), set1(offset)}; }

// 32 numbers of 4 bits in 16 bytes, the first 16 in the low halves.
template <typename Value>
inline void nibbles(const std::uint8_t* q, float* out, const Value& value) {
  for (std::size_t i = 0; i < 16; i += 8) {
    store(out + i, value(plane(q + i, 0, 15)));
    store(out + 16 + i, value(plane(q + i, 4, 15)));
  }
}

// The same with a fifth bit each, of 32 in 4 bytes.
template <typename Value>
inline void five_bits(const std::uint8_t* q, const std::uint8_t* high, float* out,
                      const Value& value) {
  for (std::size_t i = 0; i < 16; i += 8) {
    store(out + i, value(with_high(plane(q + i, 0, 15), bits_of(high[i / 8]), 4)));
    store(out + 16 + i, value(with_high(plane(q + i, 4, 15), bits_of(high[2 + i / 8]), 4)));
  }
}

inline void decode_q4_0(const std::uint8_t* b, float* out) {
  nibbles(b + 2, out, from_zero(8.0f, half_at(b)));
}

inline void decode_q4_1(const std::uint8_t* b, float* out) {
  nibbles(b + 4, out, from_offset(half_at(b), half_at(b + 2)));
}

inline void decode_q5_0(const std::uint8_t* b, float* out) {
  five_bits(b + 6, b + 2, out, from_zero(16.0f, half_at(b)));
}

inline void decode_q5_1(const std::uint8_t* b, float* out) {
  five_bits(b + 8, b + 4, out, from_offset(half_at(b), half_at(b + 2)));
}

inline void decode_q8_0(const std::uint8_t* b, float* out) {
  const float d = half_at(b);
  for (std::size_t i = 0; i < 32; ++i) {
    out[i] = static_cast<float>(static_cast<std::int8_t>(b[2 + i])) * d;
  }
}

// Numbers that are places in a table.
inline void looked_up(const std::uint8_t* q, const float* table, float scale, float* out) {
  for (std::size_t i = 0; i < 16; ++i) {
    out[i] = table[q[i] & 15u] * scale;
    out[i + 16] = table[q[i] >> 4u] * scale;
  }
}

inline void decode_iq4_nl(const std::uint8_t* b, float* out) {
  looked_up(b + 2, kIq4Values, half_at(b), out);
}

inline void decode_mxfp4(const std::uint8_t* b, float* out) {
  // 2^(e - 128); the two smallest are subnormal.
  const std::uint32_t e = b[0];
  looked_up(b + 1, kFp4Values, float_of_bits(e < 2 ? 0x00200000u << e : (e - 1u) << 23u), out);
}

inline void decode_q2_k(const std::uint8_t* b, float* out) {
  const std::uint8_t* q = b + 16;
  const float d = half_at(b + 80), m = half_at(b + 82);
  for (std::size_t part = 0; part < 16; ++part, out += 16) {
    const float scale = d * static_cast<float>(b[part] & 15u);
    const float offset = m * static_cast<float>(b[part] >> 4u);
    const std::uint8_t* from = q + part / 8 * 32 + part % 2 * 16;
    const FromOffset value = from_offset(scale, -offset);
    for (std::size_t i = 0; i < 16; i += 8) {
      store(out + i, value(plane(from + i, part % 8 / 2 * 2, 3)));
    }
  }
}

inline void decode_q3_k(const std::uint8_t* b, float* out) {
  const std::uint8_t *high = b, *q = b + 32, *s = b + 96;
  const float d = half_at(b + 108);
  for (std::size_t part = 0; part < 16; ++part, out += 16) {
    const unsigned low = s[part % 8] >> (part / 8 * 4) & 15u;
    const unsigned top = s[8 + part % 4] >> (part / 4 * 2) & 3u;
    const float scale = d * static_cast<float>(static_cast<int>(low | top << 4u) - 32);
    const std::uint8_t* from = q + part / 8 * 32 + part % 2 * 16;
    const std::uint8_t* bits = high + part % 2 * 16;
    const FromZero value = from_zero(4.0f, scale);
    for (std::size_t i = 0; i < 16; i += 8) {
      const I8 low_two = plane(from + i, part % 8 / 2 * 2, 3);
      store(out + i, value(with_high(low_two, plane(bits + i, part / 2, 1), 2)));
    }
  }
}

// The scale and offset, six bits each, of a part of Q4_K or Q5_K; see blocks_k.py.
inline void six_bit_pair(const std::uint8_t* s, std::size_t part, unsigned& scale,
                         unsigned& offset) {
  if (part < 4) {
    scale = s[part] & 63u;
    offset = s[part + 4] & 63u;
  } else {
    scale = (s[part + 4] & 15u) | (s[part - 4] >> 2u & 0x30u);
    offset = (s[part + 4] >> 4u) | (s[part] >> 2u & 0x30u);
  }
}

inline void decode_q4_k(const std::uint8_t* b, float* out) {
  const float d = half_at(b), m = half_at(b + 2);
  for (std::size_t part = 0; part < 8; ++part, out += 32) {
    unsigned s, o;
    six_bit_pair(b + 4, part, s, o);
    const float scale = d * static_cast<float>(s), offset = m * static_cast<float>(o);
    const std::uint8_t* from = b + 16 + part / 2 * 32;
    const FromOffset value = from_offset(scale, -offset);
    for (std::size_t i = 0; i < 32; i += 8) {
      store(out + i, value(plane(from + i, part % 2 * 4, 15)));
    }
  }
}

inline void decode_q5_k(const std::uint8_t* b, float* out) {
  const float d = half_at(b), m = half_at(b + 2);
  const std::uint8_t* high = b + 16;
  for (std::size_t part = 0; part < 8; ++part, out += 32) {
    unsigned s, o;
    six_bit_pair(b + 4, part, s, o);
    const float scale = d * static_cast<float>(s), offset = m * static_cast<float>(o);
    const std::uint8_t* from = b + 48 + part / 2 * 32;
    const FromOffset value = from_offset(scale, -offset);
    for (std::size_t i = 0; i < 32; i += 8) {
      const I8 low_four = plane(from + i, part % 2 * 4, 15);
      store(out + i, value(with_high(low_four, plane(high + i, part, 1), 4)));
    }
  }
}

inline void decode_q6_k(const std::uint8_t* b, float* out) {
  const std::uint8_t *low = b, *high = b + 128, *s = b + 192;
  const float d = half_at(b + 208);
  for (std::size_t part = 0; part < 16; ++part, out += 16) {
    const float scale = d * static_cast<float>(static_cast<std::int8_t>(s[part]));
    const std::size_t in_half = part % 8;
    const std::uint8_t* from = low + part / 8 * 64 + in_half % 4 * 16;
    const std::uint8_t* bits = high + part / 8 * 32 + part % 2 * 16;
    const FromZero value = from_zero(32.0f, scale);
    for (std::size_t i = 0; i < 16; i += 8) {
      const I8 low_four = plane(from + i, in_half / 4 * 4, 15);
      store(out + i, value(with_high(low_four, plane(bits + i, in_half / 2 * 2, 3), 4)));
    }
  }
}

inline void decode_iq4_xs(const std::uint8_t* b, float* out) {
  const float d = half_at(b);
  const unsigned high = b[2] | static_cast<unsigned>(b[3]) << 8u;
  for (std::size_t part = 0; part < 8; ++part, out += 32) {
    const unsigned low = b[4 + part / 2] >> (part % 2 * 4) & 15u;
    const unsigned number = low | (high >> (part * 2) & 3u) << 4u;
    const float scale = d * static_cast<float>(static_cast<int>(number) - 32);
    looked_up(b + 8 + part * 16, kIq4Values, scale, out);
  }
}

// Numbers of 0 to 2, five a byte: 3^place times a byte, of which eight bits stay, is a fraction of
// 256 whose first digit of base 3 it is.
inline float* thirds(const std::uint8_t* q, std::size_t width, int places, float d, float* out) {
  for (unsigned power = 1; places-- > 0; power *= 3) {
    for (std::size_t i = 0; i < width; ++i) {
      const unsigned digit = (q[i] * power & 255u) * 3u >> 8u;
      *out++ = static_cast<float>(static_cast<int>(digit) - 1) * d;
    }
  }
  return out;
}

inline void decode_tq1_0(const std::uint8_t* b, float* out) {
  const float d = half_at(b + 52);
  out = thirds(b, 32, 5, d, out);
  out = thirds(b + 32, 16, 5, d, out);
  thirds(b + 48, 4, 4, d, out);
}

inline void decode_tq2_0(const std::uint8_t* b, float* out) {
  const FromZero value = from_zero(1.0f, half_at(b + 64));
  for (std::size_t part = 0; part < 8; ++part, out += 32) {
    for (std::size_t i = 0; i < 32; i += 8) {
      store(out + i, value(plane(b + part / 4 * 32 + i, part % 4 * 2, 3)));
    }
  }
}

template <typename Decode>
inline void each_block(BlockShape shape, const std::uint8_t* bytes, std::size_t count, float* out,
                       const Decode& decode) {
  for (std::size_t i = 0; i < count; i += shape.values, bytes += shape.bytes) {
    decode(bytes, out + i);
  }
}

// Numbers of two bytes each, eight at a time and the odd ones alone.
template <typename Eight, typename One>
inline void singles(const Eight& eight, const One& one, const std::uint8_t* bytes,
                    std::size_t count, float* out) {
  std::size_t i = 0;
  for (; i + 8 <= count; i += 8) store(out + i, eight(bytes + 2 * i));
  for (; i < count; ++i) out[i] = one(bytes + 2 * i);
}

// `count` values, whole blocks of `type`.
void dequantize(DType type, const std::uint8_t* bytes, std::size_t count, float* out) {
  const auto each = [&](const auto& decode) {
    each_block(kBlocks[static_cast<std::size_t>(type)], bytes, count, out, decode);
  };
  switch (type) {
    case DType::kF32: std::memcpy(out, bytes, count * sizeof(float)); return;
    case DType::kF16: return singles(load_half, half_at, bytes, count, out);
    case DType::kBF16: return singles(load_bfloat, bfloat_at, bytes, count, out);
    case DType::kQ8_0: return each(decode_q8_0);
    case DType::kQ4_0: return each(decode_q4_0);
    case DType::kQ4_1: return each(decode_q4_1);
    case DType::kQ5_0: return each(decode_q5_0);
    case DType::kQ5_1: return each(decode_q5_1);
    case DType::kQ2_K: return each(decode_q2_k);
    case DType::kQ3_K: return each(decode_q3_k);
    case DType::kQ4_K: return each(decode_q4_k);
    case DType::kQ5_K: return each(decode_q5_k);
    case DType::kQ6_K: return each(decode_q6_k);
    case DType::kIQ4_NL: return each(decode_iq4_nl);
    case DType::kIQ4_XS: return each(decode_iq4_xs);
    case DType::kMXFP4: return each(decode_mxfp4);
    case DType::kTQ1_0: return each(decode_tq1_0);
    case DType::kTQ2_0: return each(decode_tq2_0);
    case DType::kSparse4:
    case DType::kSparse8: return;  // of matrices, which PackedMatrix reads
  }
}

}  // namespace
}  // namespace miudo
