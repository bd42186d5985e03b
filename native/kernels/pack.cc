#include "kernels/pack.h"

#include <cstring>

#include "kernels/half.h"

namespace miudo {
namespace {

// The numbers of a group of one row, 4 a word, as they come from a file: a byte each.
using Quads = std::uint32_t[kQuads];

constexpr std::uint32_t in_each_byte(unsigned byte) { return byte * 0x01010101u; }

std::uint32_t word_at(const std::uint8_t* bytes) {
  std::uint32_t word;
  std::memcpy(&word, bytes, 4);
  return word;
}

// `n` quads from planes as files have them: `count` bits from bit `from` on of bytes that lie one
// after the other, moved to bit `to`.
void gather(const std::uint8_t* bytes, std::size_t n, int from, int count, int to,
            std::uint32_t* out) {
  const std::uint32_t mask = in_each_byte((1u << count) - 1u);
  for (std::size_t i = 0; i < n; ++i) out[i] |= (word_at(bytes + 4 * i) >> from & mask) << to;
}

// 16 bytes, whose low halves are the first 16 numbers.
void gather_nibbles(const std::uint8_t* q, Quads& out) {
  gather(q, 4, 0, 4, 0, out);
  gather(q, 4, 4, 4, 0, out + 4);
}

// A fifth bit of each of 32, in 4 bytes.
void gather_fifth(const std::uint8_t* bits, Quads& out) {
  for (std::size_t i = 0; i < kQuads; ++i) {
    const std::uint32_t four = bits[i / 2] >> (i % 2 * 4) & 15u;
    // Copies 7 bits apart: bit i of the i-th lies at the foot of byte i.
    out[i] |= (four * 0x00204081u & in_each_byte(1)) << 4;
  }
}

// Numbers of 0 to 2, five (or the last four) a byte: 3^place times a byte, of which eight bits stay,
// is a fraction of 256 whose first digit of base 3 it is.
void gather_thirds(const std::uint8_t* bytes, std::size_t n, int place, std::uint32_t* out) {
  constexpr unsigned kPowers[] = {1, 3, 9, 27, 81};
  for (std::size_t i = 0; i < 4 * n; ++i) {
    const unsigned digit = (bytes[i] * kPowers[place] & 255u) * 3u >> 8;
    out[i / 4] |= digit << i % 4 * 8;
  }
}

// Part g of TQ1_0: 32 bytes hold a number of each of the first five parts, 16 of the next two and
// a half, 4 bytes four times four.
void gather_ternary(const std::uint8_t* b, std::size_t g, Quads& out) {
  if (g < 5) return gather_thirds(b, kQuads, static_cast<int>(g), out);
  const int place = static_cast<int>(2 * (g - 5));
  gather_thirds(b + 32, 4, place, out);
  if (g < 7) return gather_thirds(b + 32, 4, place + 1, out + 4);
  for (int i = 0; i < 4; ++i) gather_thirds(b + 48, 1, i, out + 4 + i);
}

// The numbers of part g (of eight) of a block; `b` is the block.
void numbers_of(DType type, const std::uint8_t* b, std::size_t g, Quads& out) {
  std::memset(out, 0, sizeof(out));
  const int pair = static_cast<int>(g % 2), part = static_cast<int>(g % 4);
  const std::size_t half = g / 4;
  switch (type) {
    case DType::kQ8_0: return gather(b + 2, kQuads, 0, 8, 0, out);
    case DType::kQ4_0:
    case DType::kIQ4_NL: return gather_nibbles(b + 2, out);
    case DType::kQ4_1: return gather_nibbles(b + 4, out);
    case DType::kMXFP4: return gather_nibbles(b + 1, out);
    case DType::kIQ4_XS: return gather_nibbles(b + 8 + g * 16, out);
    case DType::kQ5_0: gather_nibbles(b + 6, out); return gather_fifth(b + 2, out);
    case DType::kQ5_1: gather_nibbles(b + 8, out); return gather_fifth(b + 4, out);
    case DType::kQ2_K: return gather(b + 16 + half * 32, kQuads, 2 * part, 2, 0, out);
    case DType::kQ3_K:
      gather(b + 32 + half * 32, kQuads, 2 * part, 2, 0, out);
      return gather(b, kQuads, static_cast<int>(g), 1, 2, out);
    case DType::kQ4_K: return gather(b + 16 + g / 2 * 32, kQuads, 4 * pair, 4, 0, out);
    case DType::kQ5_K:
      gather(b + 48 + g / 2 * 32, kQuads, 4 * pair, 4, 0, out);
      return gather(b + 16, kQuads, static_cast<int>(g), 1, 4, out);
    case DType::kQ6_K:
      gather(b + half * 64 + g % 2 * 32, kQuads, 4 * (part / 2), 4, 0, out);
      return gather(b + 128 + half * 32, kQuads, 2 * part, 2, 4, out);
    case DType::kTQ1_0: return gather_ternary(b, g, out);
    case DType::kTQ2_0: return gather(b + half * 32, kQuads, 2 * part, 2, 0, out);
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
    case DType::kSparse4:
    case DType::kSparse8: return;
  }
}

// Bits [from, from + count) of every number of a lane, `per_byte` quads side by side in a byte.
void put_plane(const Quads& q, int from, int count, std::size_t lane, std::uint8_t* plane) {
  const std::size_t per_byte = static_cast<std::size_t>(8 / count), lines = kQuads / per_byte;
  const std::uint32_t mask = in_each_byte((1u << count) - 1u);
  for (std::size_t line = 0; line < lines; ++line) {
    std::uint32_t word = 0;
    for (std::size_t i = 0; i < per_byte; ++i) {
      // Halves are 4 quads apart; smaller parts lie quad after quad.
      const std::size_t quad = count == 4 ? line + 4 * i : line * per_byte + i;
      word |= (q[quad] >> from & mask) << (static_cast<int>(i) * count);
    }
    std::memcpy(plane + line * kLine + lane * 4, &word, 4);
  }
}

unsigned take_plane(const std::uint8_t* plane, int count, std::size_t lane, std::size_t column) {
  const std::size_t quad = column / 4, per_byte = static_cast<std::size_t>(8 / count);
  const std::size_t line = count == 4 ? quad % 4 : quad / per_byte;
  const std::size_t place = count == 4 ? quad / 4 : quad % per_byte;
  const unsigned byte = plane[line * kLine + lane * 4 + column % 4];
  return byte >> (static_cast<int>(place) * count) & ((1u << count) - 1u);
}

// Bits of the first plane of a format, whose other plane has the rest.
constexpr int low_bits_of(int bits) { return bits == 8 ? 8 : bits >= 4 ? 4 : 2; }

void put_numbers(const Format& f, const Quads& q, std::size_t lane, std::uint8_t* to) {
  const int low = low_bits_of(f.bits);
  put_plane(q, 0, low, lane, to);
  if (f.bits > low) {
    put_plane(q, low, f.bits - low, lane, to + static_cast<std::size_t>(low) * kLine);
  }
}

// The scale and offset, six bits each, of part g of Q4_K and Q5_K; see blocks_k.py.
void six_bit_pair(const std::uint8_t* s, std::size_t g, std::uint8_t& scale, std::uint8_t& offset) {
  unsigned low = s[g % 4], high = s[g % 4 + 4];
  if (g >= 4) {
    const unsigned last = s[g + 4];
    low = (last & 15u) | (low >> 2 & 0x30u);
    high = last >> 4 | (high >> 2 & 0x30u);
  }
  scale = static_cast<std::uint8_t>(low & 63u);
  offset = static_cast<std::uint8_t>(high & 63u);
}

std::uint8_t q3_scale(const std::uint8_t* s, std::size_t part) {
  const unsigned low = s[part % 8] >> (part / 8 * 4) & 15u;
  const unsigned top = s[8 + part % 4] >> (part / 4 * 2) & 3u;
  return static_cast<std::uint8_t>((low | top << 4) - 32u);
}

std::uint8_t iq4_scale(const std::uint8_t* b, std::size_t g) {
  const unsigned low = b[4 + g / 2] >> (g % 2 * 4) & 15u;
  const unsigned high = (b[2] | static_cast<unsigned>(b[3]) << 8) >> (g * 2) & 3u;
  return static_cast<std::uint8_t>((low | high << 4) - 32u);
}

// 2^(e - 128) as bfloat16; the two smallest are subnormal.
std::uint16_t power_of(std::uint8_t e) {
  return static_cast<std::uint16_t>(e < 2 ? 0x20u << e : (e - 1u) << 7);
}

// A group's scales of one lane: `super` and `p` are its headers in the tile.
void put_scales(DType type, const std::uint8_t* b, std::size_t g, std::size_t lane,
                std::uint8_t* super, std::uint8_t* p) {
  const auto supers = [&](std::size_t d, std::size_t halves) {
    for (std::size_t i = 0; i < halves; ++i) {
      std::memcpy(super + (i * kTileRows + lane) * 2, b + d + 2 * i, 2);
    }
  };
  std::uint8_t *first = p + lane, *second = p + kTileRows + lane;
  switch (type) {
    case DType::kQ4_1:
    case DType::kQ5_1: std::memcpy(p + kLine + 2 * lane, b + 2, 2); [[fallthrough]];
    case DType::kQ8_0:
    case DType::kQ4_0:
    case DType::kQ5_0:
    case DType::kIQ4_NL: std::memcpy(p + 2 * lane, b, 2); return;
    case DType::kMXFP4: {
      const std::uint16_t power = power_of(b[0]);
      std::memcpy(p + 2 * lane, &power, 2);
      return;
    }
    case DType::kQ2_K:
      *first = b[2 * g], *second = b[2 * g + 1];
      return supers(80, 2);
    case DType::kQ3_K:
      *first = q3_scale(b + 96, 2 * g), *second = q3_scale(b + 96, 2 * g + 1);
      return supers(108, 1);
    case DType::kQ4_K:
    case DType::kQ5_K: six_bit_pair(b + 4, g, *first, *second); return supers(0, 2);
    case DType::kQ6_K:
      *first = b[192 + 2 * g], *second = b[192 + 2 * g + 1];
      return supers(208, 1);
    case DType::kIQ4_XS: *first = *second = iq4_scale(b, g); return supers(0, 1);
    case DType::kTQ1_0: return supers(52, 1);
    case DType::kTQ2_0: return supers(64, 1);
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
    case DType::kSparse4:
    case DType::kSparse8: return;
  }
}

// Scale and offset of one lane, for the first or second 16 columns.
struct ScalePair {
  float scale, offset;
};

ScalePair scales_of(const Format& f, const std::uint8_t* super, const std::uint8_t* p,
                    std::size_t lane, std::size_t part) {
  const auto half = [lane](const std::uint8_t* from) { return half_at(from + 2 * lane); };
  const std::uint8_t* m = super + kTileRows * 2;
  const std::uint8_t first = p[lane], second = p[kTileRows + lane], own = part == 0 ? first : second;
  switch (f.scales) {
    case Scales::kHalf: return {half(p), 0.0f};
    case Scales::kBfloat: return {bfloat_at(p + 2 * lane), 0.0f};
    case Scales::kHalfOffset: return {half(p), half(p + kLine)};
    case Scales::kSuper:
      return {half(super) * static_cast<float>(static_cast<std::int8_t>(own)), 0.0f};
    case Scales::kSuperOffset:
      return {half(super) * static_cast<float>(first), -half(m) * static_cast<float>(second)};
    case Scales::kSuperHalfOffset:
      return {half(super) * static_cast<float>(own & 15u), -half(m) * static_cast<float>(own >> 4)};
    case Scales::kSuperAlone: return {half(super), 0.0f};
    case Scales::kNone: break;
  }
  return {0.0f, 0.0f};
}

float value_at(const Format& f, const std::uint8_t* q, std::size_t lane, std::size_t column,
               const ScalePair& s) {
  const int low = low_bits_of(f.bits);
  unsigned number = take_plane(q, low, lane, column);
  if (f.bits == 8) return static_cast<float>(static_cast<std::int8_t>(number)) * s.scale;
  if (f.bits > low) {
    number |= take_plane(q + low * static_cast<int>(kLine), f.bits - low, lane, column) << low;
  }
  if (f.table != nullptr) return static_cast<float>(f.table[number]) * s.scale;
  const float value = static_cast<float>(static_cast<int>(number) - f.zero) * s.scale;
  return f.zero != 0 || f.scales == Scales::kSuper ? value : value + s.offset;
}

// Made for each type, so that the shifts and masks above are constants.
template <DType kType>
void pack_rows(std::size_t groups, const std::uint8_t* rows, std::size_t row_bytes,
               std::size_t count, std::uint8_t* tile, std::size_t tile_bytes) {
  constexpr Format kFormat = format_of(kType);
  constexpr TileLayout kAt(kFormat);
  constexpr BlockShape kShape = kBlocks[static_cast<std::size_t>(kType)];
  constexpr std::size_t kInBlock = kShape.values / kGroup;
  // Headers have gaps, and lanes without a row are zero.
  if (count < kTileRows) std::memset(tile, 0, tile_bytes);
  for (std::size_t g = 0; g < groups; ++g) {
    std::uint8_t *header = tile + kAt.pair_at(g), *super = tile + kAt.super_at(g);
    if (count == kTileRows && g % 2 == 0) std::memset(header, 0, kAt.pair_header);
    if (count == kTileRows && kAt.super_header != 0 && g % kSuperGroups == 0) {
      std::memset(super, 0, kAt.super_header);
    }
    for (std::size_t lane = 0; lane < count; ++lane) {
      const std::uint8_t* block = rows + lane * row_bytes + g / kInBlock * kShape.bytes;
      put_scales(kType, block, g % kInBlock, lane, super, header + g % 2 * kTileRows * 2);
      Quads q;
      numbers_of(kType, block, g % kInBlock, q);
      put_numbers(kFormat, q, lane, tile + kAt.group_at(g));
    }
  }
}

}  // namespace

void pack_tile(DType type, std::size_t groups, const std::uint8_t* rows, std::size_t row_bytes,
               std::size_t count, std::uint8_t* tile, std::size_t tile_bytes) {
  const auto pack = [&]<DType kType>() {
    pack_rows<kType>(groups, rows, row_bytes, count, tile, tile_bytes);
  };
  switch (type) {
    case DType::kQ8_0: return pack.operator()<DType::kQ8_0>();
    case DType::kQ4_0:
    case DType::kIQ4_NL: return pack.operator()<DType::kQ4_0>();
    case DType::kQ4_1: return pack.operator()<DType::kQ4_1>();
    case DType::kQ5_0: return pack.operator()<DType::kQ5_0>();
    case DType::kQ5_1: return pack.operator()<DType::kQ5_1>();
    case DType::kQ2_K: return pack.operator()<DType::kQ2_K>();
    case DType::kQ3_K: return pack.operator()<DType::kQ3_K>();
    case DType::kQ4_K: return pack.operator()<DType::kQ4_K>();
    case DType::kQ5_K: return pack.operator()<DType::kQ5_K>();
    case DType::kQ6_K: return pack.operator()<DType::kQ6_K>();
    case DType::kIQ4_XS: return pack.operator()<DType::kIQ4_XS>();
    case DType::kMXFP4: return pack.operator()<DType::kMXFP4>();
    case DType::kTQ1_0: return pack.operator()<DType::kTQ1_0>();
    case DType::kTQ2_0: return pack.operator()<DType::kTQ2_0>();
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
    case DType::kSparse4:
    case DType::kSparse8: return;
  }
}

void read_group(DType type, const std::uint8_t* tile, std::size_t g, std::size_t lane, float* out) {
  const Format& f = format_of(type);
  const TileLayout at(f);
  const std::uint8_t* header = tile + at.pair_at(g) + g % 2 * kTileRows * 2;
  for (std::size_t part = 0; part < 2; ++part) {
    const ScalePair s = scales_of(f, tile + at.super_at(g), header, lane, part);
    for (std::size_t c = part * 16; c < part * 16 + 16; ++c) {
      out[c] = value_at(f, tile + at.group_at(g), lane, c, s);
    }
  }
}

}  // namespace miudo
