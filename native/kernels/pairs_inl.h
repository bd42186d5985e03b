// Products of int8 activations with tiles of pairs, at most two numbers in four columns.
// Numbers stay as they lie: what they are multiplied with is picked by their places, half as many
// products as dense tiles take. The sums are the same integers, and floats are made of them in the
// same order: the bits are those of dense tiles.
// Compiled once per instruction set; see kernels.h. Read next: kernels/sparse.h for the layout.
#pragma once

#include "kernels/matmul_inl.h"

namespace miudo {
namespace {

// The numbers of pair kUnit of quads in a group at p.
template <DType kType, int kUnit>
inline Bytes64 pair_numbers(const std::uint8_t* p) {
  if constexpr (kType == DType::kSparse8) return load_bytes64(p + (1 + kUnit) * kLine);
  return moved_bits<kUnit / 2 * 4, 0, 4>(load_bytes64(p + (1 + kUnit % 2) * kLine));
}

template <DType kType, int N>
inline void multiply_pairs_group(const std::uint8_t* p, const Wide& scale, const Place& x,
                                 Wide (&acc)[N]) {
  constexpr Values kValues = values_of(format_of(dense_of(kType)));
  // What a number is too large by, times all that was picked: which no sum of x tells.
  constexpr int kZero = format_of(dense_of(kType)).zero + Dots<kValues>::kExcess;
  Dots<kValues> dots[N];
  Dots<Values::kNibbles> chosen[N];
  const Factor<Values::kNibbles> one(filled_bytes64(1));
  const Bytes64 all_places = load_bytes64(p);
  [&]<int... kUnit>(std::integer_sequence<int, kUnit...>) {
    const auto add_unit = [&]<int kAt>(std::integral_constant<int, kAt>) {
      const Factor<kValues> factor(pair_numbers<kType, kAt>(p));
      const Bytes64 places = moved_bits<2 * kAt, 0, 2>(all_places);
      for (int i = 0; i < N; ++i) {
        const Bytes64 own =
            picked(places, x.values + static_cast<std::size_t>(i) * kGroup + 8 * kAt);
        dots[i].add_each(factor, own);
        if constexpr (kZero != 0) chosen[i].add_each(one, own);
      }
    };
    (add_unit(std::integral_constant<int, kUnit>()), ...);
  }(std::make_integer_sequence<int, kQuads / 2>());
  for (int i = 0; i < N; ++i) {
    WideInt total = dots[i].total();
    if constexpr (kZero != 0) total = sub(total, shift_left<log2_of(kZero)>(chosen[i].total()));
    acc[i] = add(acc[i], mul(to_wide(total), mul(scale, wide(x.scales[i]))));
  }
}

template <DType kType, int N>
void pairs_block(const Packed& w, const float* bias, Place x, float* out, std::size_t stride,
                 std::size_t tile) {
  constexpr TileLayout at = pairs_layout(kType);
  const std::uint8_t* data = w.data + tile * w.tile_bytes;
  Wide acc[N];
  for (Wide& a : acc) a = wide(0.0f);
  for (std::size_t g = 0; g < w.cols / kGroup; ++g) {
    const Wide scale = wide_half(data + at.pair_at(g) + g % 2 * kTileRows * 2);
    multiply_pairs_group<kType>(data + at.group_at(g), scale, x, acc);
    x.values += x.width * kGroup;
    x.scales += x.width;
  }
  finish<false>(w, tile, bias, acc, N, out, stride);
}

// Positions two by two: what is picked for each leaves no registers for more.
template <DType kType>
void matmul_pairs(const Packed& w, const float* bias, const Rows& in, float* out,
                  std::size_t stride, std::size_t begin, std::size_t end) {
  const std::size_t k = w.cols, groups = k / kGroup;
  for (std::size_t tile = begin; tile < end; ++tile) {
    for (std::size_t at = 0; at < in.n; at += kBlockRows) {
      const std::size_t n = in.n - at < kBlockRows ? in.n - at : kBlockRows;
      for (std::size_t i = 0; i < n; i += 2) {
        const Place x{in.quants.values + at * k + i * kGroup, in.quants.scales + at * groups + i,
                      nullptr, nullptr, block_width(n), 0};
        float* to = out + (at + i) * stride + (tile - begin) * kTileRows;
        if (i + 1 < n) {
          pairs_block<kType, 2>(w, bias, x, to, stride, tile);
        } else {
          pairs_block<kType, 1>(w, bias, x, to, stride, tile);
        }
      }
    }
  }
}

}  // namespace
}  // namespace miudo
