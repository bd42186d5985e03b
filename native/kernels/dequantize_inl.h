// Blocks of files to floats, bit for bit as miudo/formats/blocks.py: one product of scale and
// small number, then at most one difference or sum, never fused.
// Internal linkage: every including file gets its own copy, compiled for its processor.
// Read next: kernels/rows_inl.h.
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

inline float half_at(const std::uint8_t* p) {
  std::uint16_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return half_to_float(bits);
}

// Halves of 16 bytes: the first 16 numbers lie in the low nibbles.
template <typename Value>
inline void nibbles(const std::uint8_t* q, float* out, const Value& value) {
  for (std::size_t i = 0; i < 16; ++i) {
    out[i] = value(q[i] & 15u, i);
    out[i + 16] = value(q[i] >> 4u, i + 16);
  }
}

inline void decode_q4_0(const std::uint8_t* b, float* out) {
  const float d = half_at(b);
  nibbles(b + 2, out,
          [d](unsigned q, std::size_t) { return static_cast<float>(static_cast<int>(q) - 8) * d; });
}

inline void decode_q4_1(const std::uint8_t* b, float* out) {
  const float d = half_at(b), m = half_at(b + 2);
  nibbles(b + 4, out, [d, m](unsigned q, std::size_t) { return static_cast<float>(q) * d + m; });
}

inline std::uint32_t fifth_bits(const std::uint8_t* p) {
  std::uint32_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return bits;
}

inline void decode_q5_0(const std::uint8_t* b, float* out) {
  const float d = half_at(b);
  const std::uint32_t high = fifth_bits(b + 2);
  nibbles(b + 6, out, [d, high](unsigned q, std::size_t i) {
    return static_cast<float>(static_cast<int>(q | (high >> i & 1u) << 4u) - 16) * d;
  });
}

inline void decode_q5_1(const std::uint8_t* b, float* out) {
  const float d = half_at(b), m = half_at(b + 2);
  const std::uint32_t high = fifth_bits(b + 4);
  nibbles(b + 8, out, [d, m, high](unsigned q, std::size_t i) {
    return static_cast<float>(q | (high >> i & 1u) << 4u) * d + m;
  });
}

inline void decode_q8_0(const std::uint8_t* b, float* out) {
  const float d = half_at(b);
  for (std::size_t i = 0; i < 32; ++i) {
    out[i] = static_cast<float>(static_cast<std::int8_t>(b[2 + i])) * d;
  }
}

inline void decode_iq4_nl(const std::uint8_t* b, float* out) {
  const float d = half_at(b);
  nibbles(b + 2, out, [d](unsigned q, std::size_t) { return kIq4Values[q] * d; });
}

inline void decode_mxfp4(const std::uint8_t* b, float* out) {
  // 2^(e - 128); the two smallest are subnormal.
  const std::uint32_t e = b[0];
  const std::uint32_t bits = e < 2 ? 0x00200000u << e : (e - 1u) << 23u;
  float d;
  std::memcpy(&d, &bits, sizeof(d));
  nibbles(b + 1, out, [d](unsigned q, std::size_t) { return kFp4Values[q] * d; });
}

inline void decode_q2_k(const std::uint8_t* b, float* out) {
  const std::uint8_t* q = b + 16;
  const float d = half_at(b + 80), m = half_at(b + 82);
  for (std::size_t part = 0; part < 16; ++part, out += 16) {
    const float scale = d * static_cast<float>(b[part] & 15u);
    const float offset = m * static_cast<float>(b[part] >> 4u);
    const std::uint8_t* from = q + part / 8 * 32 + part % 2 * 16;
    const unsigned shift = static_cast<unsigned>(part % 8 / 2 * 2);
    for (std::size_t i = 0; i < 16; ++i) {
      out[i] = static_cast<float>(from[i] >> shift & 3u) * scale - offset;
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
    const unsigned shift = static_cast<unsigned>(part % 8 / 2 * 2);
    const unsigned bit = static_cast<unsigned>(part / 2);
    for (std::size_t i = 0; i < 16; ++i) {
      const unsigned number = (from[i] >> shift & 3u) | (bits[i] >> bit & 1u) << 2u;
      out[i] = static_cast<float>(static_cast<int>(number) - 4) * scale;
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
    const unsigned shift = static_cast<unsigned>(part % 2 * 4);
    for (std::size_t i = 0; i < 32; ++i) {
      out[i] = static_cast<float>(from[i] >> shift & 15u) * scale - offset;
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
    const unsigned shift = static_cast<unsigned>(part % 2 * 4), bit = static_cast<unsigned>(part);
    for (std::size_t i = 0; i < 32; ++i) {
      const unsigned number = (from[i] >> shift & 15u) | (high[i] >> bit & 1u) << 4u;
      out[i] = static_cast<float>(number) * scale - offset;
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
    const unsigned shift = static_cast<unsigned>(in_half / 4 * 4);
    const unsigned bit = static_cast<unsigned>(in_half / 2 * 2);
    for (std::size_t i = 0; i < 16; ++i) {
      const unsigned number = (from[i] >> shift & 15u) | (bits[i] >> bit & 3u) << 4u;
      out[i] = static_cast<float>(static_cast<int>(number) - 32) * scale;
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
    nibbles(b + 8 + part * 16, out,
            [scale](unsigned q, std::size_t) { return kIq4Values[q] * scale; });
  }
}

template <typename Decode>
inline void each_block(BlockShape shape, const std::uint8_t* bytes, std::size_t count, float* out,
                       const Decode& decode) {
  for (std::size_t i = 0; i < count; i += shape.values, bytes += shape.bytes) {
    decode(bytes, out + i);
  }
}

// `count` values, whole blocks of `type`.
void dequantize(DType type, const std::uint8_t* bytes, std::size_t count, float* out) {
  const auto each = [&](const auto& decode) {
    each_block(kBlocks[static_cast<std::size_t>(type)], bytes, count, out, decode);
  };
  switch (type) {
    case DType::kF32: std::memcpy(out, bytes, count * sizeof(float)); return;
    case DType::kF16: return each([](const std::uint8_t* p, float* to) { *to = half_at(p); });
    case DType::kBF16: {
      return each([](const std::uint8_t* p, float* to) {
        const std::uint32_t bits = static_cast<std::uint32_t>(p[0] | p[1] << 8) << 16u;
        std::memcpy(to, &bits, sizeof(bits));
      });
    }
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
  }
}

}  // namespace
}  // namespace miudo
