// A group of a packed tile on the lanes of 16 rows: its numbers quad by quad, its scales.
// Compiled once per instruction set; see kernels.h. For the layout read kernels/packed.h.
#pragma once

#include "kernels/packed.h"

namespace miudo {
namespace {

// `kCount` bits of every byte, from bit kFrom on, moved to bit kTo.
template <int kFrom, int kTo, int kCount>
inline Bytes64 moved_bits(const Bytes64& from) {
  return mask_bytes(shift_right<kFrom - kTo>(from), ((1 << kCount) - 1) << kTo);
}

// What stored numbers are to the integer kernels.
constexpr Values values_of(const Format& f) {
  if (f.bits == 8 || f.table != nullptr) return Values::kSigned;
  return f.bits <= 4 ? Values::kNibbles : Values::kSmall;
}

// The numbers of quad kQuad of the group at p.
template <DType kType, int kQuad>
inline Bytes64 quad(const std::uint8_t* p) {
  constexpr Format f = format_of(kType);
  constexpr int kPart = kQuad % 4;
  constexpr std::size_t kHalf = kQuad / 4;
  if constexpr (f.bits == 8) {
    return load_bytes64(p + kQuad * kLine);
  } else if constexpr (f.bits <= 3) {
    const Bytes64 low = moved_bits<2 * kPart, 0, 2>(load_bytes64(p + kHalf * kLine));
    if constexpr (f.bits == 2) return low;
    return either(low, moved_bits<kQuad, 2, 1>(load_bytes64(p + 2 * kLine)));
  } else {
    const Bytes64 low = moved_bits<4 * static_cast<int>(kHalf), 0, 4>(load_bytes64(p + kPart * kLine));
    if constexpr (f.table != nullptr) return look_up(f.table, low);
    if constexpr (f.bits == 5) {
      return either(low, moved_bits<kQuad, 4, 1>(load_bytes64(p + 4 * kLine)));
    }
    if constexpr (f.bits == 6) {
      return either(low, moved_bits<2 * kPart, 4, 2>(load_bytes64(p + (4 + kHalf) * kLine)));
    }
    return low;
  }
}

// Scales and offsets of one group: one for its 32 columns, or two for 16 each.
template <DType kType>
struct GroupScales {
  static constexpr Format f = format_of(kType);
  static constexpr int kParts =
      f.scales == Scales::kSuper || f.scales == Scales::kSuperHalfOffset ? 2 : 1;
  static constexpr bool kOffsets = f.scales == Scales::kHalfOffset ||
                                   f.scales == Scales::kSuperOffset ||
                                   f.scales == Scales::kSuperHalfOffset;
  Wide scale[kParts], offset[kParts];

  GroupScales(const std::uint8_t* tile, std::size_t g) {
    constexpr TileLayout at(f);
    const std::uint8_t* p = tile + at.pair_at(g) + g % 2 * kTileRows * 2;
    if constexpr (f.scales == Scales::kHalf) scale[0] = wide_half(p);
    if constexpr (f.scales == Scales::kBfloat) scale[0] = wide_bfloat(p);
    if constexpr (f.scales == Scales::kHalfOffset) {
      scale[0] = wide_half(p);
      offset[0] = wide_half(p + kLine);
    }
    if constexpr (f.scales >= Scales::kSuper) read_super(tile + at.super_at(g), p);
  }

 private:
  void read_super(const std::uint8_t* super, const std::uint8_t* p) {
    const Wide d = wide_half(super);
    if constexpr (f.scales == Scales::kSuperAlone) {
      scale[0] = d;
      return;
    }
    if constexpr (f.scales == Scales::kSuper) {
      scale[0] = mul(d, wide_int8(p));
      scale[1] = mul(d, wide_int8(p + kTileRows));
      return;
    }
    // Products, then the sign: as the difference that blocks_k.py makes.
    const Wide m = negate(wide_half(super + kTileRows * 2));
    if constexpr (f.scales == Scales::kSuperOffset) {
      scale[0] = mul(d, wide_uint8(p));
      offset[0] = mul(m, wide_uint8(p + kTileRows));
    } else if constexpr (kParts == 2) {
      for (std::size_t part = 0; part < 2; ++part) {
        scale[part] = mul(d, wide_nibbles<0>(p + part * kTileRows));
        offset[part] = mul(m, wide_nibbles<4>(p + part * kTileRows));
      }
    }
  }
};

}  // namespace
}  // namespace miudo
