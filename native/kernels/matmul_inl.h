// Matrix products on packed tiles. Compiled once per instruction set; see kernels.h.
// One accumulator an output element, columns ascending, whatever the number N of positions
// that share a weight load. Products and sums of the int8 path are not fused, so that every
// instruction set, and NumPy, gives the same bits. Internal linkage: every including file gets its
// own copy.
#pragma once

#include <utility>

#include "kernels/kernels.h"
#include "kernels/unpack_inl.h"

namespace miudo {
namespace {

// Floats, against N positions; `Load` widens 16 numbers of `kBytes` each.
template <DType kType, int N>
inline void multiply_floats(const Packed& w, std::size_t tile, const Rows& in, std::size_t at,
                            Wide (&acc)[N]) {
  constexpr std::size_t kStep = kTileRows * kBlocks[static_cast<std::size_t>(kType)].bytes;
  const std::uint8_t* p = w.data + tile * w.tile_bytes;
  const float* x = in.x + at * in.stride;
  for (std::size_t c = 0; c < w.cols; ++c, p += kStep) {
    Wide weight;
    if constexpr (kType == DType::kF32) weight = wide_floats(p);
    if constexpr (kType == DType::kF16) weight = wide_half(p);
    if constexpr (kType == DType::kBF16) weight = wide_bfloat(p);
    for (int i = 0; i < N; ++i) {
      acc[i] = fma(weight, wide(x[static_cast<std::size_t>(i) * in.stride + c]), acc[i]);
    }
  }
}

// One byte of every lane of a quad, dequantised.
template <DType kType, int kByte>
inline Wide value_of(const Bytes64& q, const GroupScales<kType>& s, int part) {
  constexpr Format f = format_of(kType);
  if constexpr (values_of(f) == Values::kSigned) {
    return mul(wide_byte<kByte, true>(q), s.scale[part]);
  } else {
    const Wide number = wide_byte<kByte, false>(q);
    if constexpr (f.zero != 0) return mul(sub(number, wide(f.zero)), s.scale[part]);
    return add(mul(number, s.scale[part]), s.offset[part]);
  }
}

template <DType kType, int kQuad, int N>
inline void multiply_quad(const std::uint8_t* p, const GroupScales<kType>& s, const float* x,
                          std::size_t stride, Wide (&acc)[N]) {
  const int part = kQuad / 4 * (GroupScales<kType>::kParts - 1);
  const Bytes64 q = quad<kType, kQuad>(p);
  const Wide values[] = {value_of<kType, 0>(q, s, part), value_of<kType, 1>(q, s, part),
                         value_of<kType, 2>(q, s, part), value_of<kType, 3>(q, s, part)};
  for (int i = 0; i < N; ++i) {
    for (int c = 0; c < 4; ++c) {
      acc[i] = fma(values[c], wide(x[static_cast<std::size_t>(i) * stride + 4 * kQuad + c]), acc[i]);
    }
  }
}

// Blocks dequantised, float activations: the reference.
template <DType kType, int N>
inline void multiply_dequantised(const Packed& w, std::size_t tile, const Rows& in, std::size_t at,
                                 Wide (&acc)[N]) {
  constexpr TileLayout layout(format_of(kType));
  const std::uint8_t* data = w.data + tile * w.tile_bytes;
  const float* x = in.x + at * in.stride;
  for (std::size_t g = 0; g < w.cols / kGroup; ++g, x += kGroup) {
    const GroupScales<kType> s(data, g);
    const std::uint8_t* p = data + layout.group_at(g);
    [&]<int... kQuad>(std::integer_sequence<int, kQuad...>) {
      (multiply_quad<kType, kQuad>(p, s, x, in.stride, acc), ...);
    }(std::make_integer_sequence<int, kQuads>());
  }
}

// Where N positions of one block of eight lie.
struct Place {
  const std::int8_t* values;
  const float* scales;
  const std::int32_t *sums, *first_sums;
  std::size_t width;  // positions from one group to the next
  std::size_t ahead;  // bytes of weights to ask the memory for in advance
};

constexpr int log2_of(int power) { return power <= 1 ? 0 : 1 + log2_of(power / 2); }

// Halves of one line come one after the other: registers hold no line for later.
template <int kBits, int kParts>
constexpr int quad_in_turn(int part, int step) {
  if (kParts == 1 && kBits != 8 && kBits != 2) return step / 2 + step % 2 * 4;
  return 8 / kParts * part + step;
}

// The part of a group that shares a scale: adds (numbers - zero) * x * both scales, and offsets.
template <DType kType, int kPart, int N>
inline void multiply_part(const std::uint8_t* p, const GroupScales<kType>& s, const Place& x,
                          Wide (&acc)[N]) {
  constexpr Format f = format_of(kType);
  constexpr Values kValues = values_of(f);
  constexpr int kParts = GroupScales<kType>::kParts;
  constexpr int kZero = f.zero + Dots<kValues>::kExcess;
  Dots<kValues> dots[N];
  [&]<int... kStep>(std::integer_sequence<int, kStep...>) {
    const auto add_quad = [&]<int kQuad>(std::integral_constant<int, kQuad>) {
      const Factor<kValues> factor(quad<kType, kQuad>(p));
      for (int i = 0; i < N; ++i) {
        dots[i].add(factor, x.values + static_cast<std::size_t>(i) * kGroup + 4 * kQuad);
      }
    };
    (add_quad(std::integral_constant<int, quad_in_turn<f.bits, kParts>(kPart, kStep)>()), ...);
  }(std::make_integer_sequence<int, 8 / kParts>());
  for (int i = 0; i < N; ++i) {
    WideInt sum = whole(x.sums[i]);
    if constexpr (kParts == 2) {
      const WideInt first = whole(x.first_sums[i]);
      sum = kPart == 0 ? first : sub(sum, first);
    }
    WideInt total = dots[i].total();
    if constexpr (kZero != 0) total = sub(total, shift_left<log2_of(kZero)>(sum));
    const Wide scale = wide(x.scales[i]);
    acc[i] = add(acc[i], mul(to_wide(total), mul(s.scale[kPart], scale)));
    if constexpr (GroupScales<kType>::kOffsets) {
      acc[i] = add(acc[i], mul(s.offset[kPart], mul(to_wide(sum), scale)));
    }
  }
}

// Blocks, int8 activations.
template <DType kType, int N>
inline void multiply_int8(const Packed& w, std::size_t tile, Place x, Wide (&acc)[N]) {
  constexpr TileLayout layout(format_of(kType));
  const std::uint8_t* data = w.data + tile * w.tile_bytes;
  for (std::size_t g = 0; g < w.cols / kGroup; ++g) {
    const GroupScales<kType> s(data, g);
    const std::uint8_t* p = data + layout.group_at(g);
    if constexpr (N == kBlockRows && format_of(kType).bits < 8) {
      for (std::size_t i = 0; i < layout.group; i += kLine) __builtin_prefetch(p + x.ahead + i);
    }
    multiply_part<kType, 0>(p, s, x, acc);
    if constexpr (GroupScales<kType>::kParts == 2) multiply_part<kType, 1>(p, s, x, acc);
    x.values += x.width * kGroup;
    x.scales += x.width;
    x.sums += x.width;
    x.first_sums += x.width;
  }
}

// Writes the sums of `n` of N positions for the rows of a tile, which begin at out, with the bias, or
// added to what is there.
template <bool kAdd, int N>
inline void finish(const Packed& w, std::size_t tile, const float* bias, const Wide (&sums)[N],
                   int n, float* out, std::size_t stride) {
  // A copy: what is counted at run time lives in memory, all the way through the sums.
  Wide acc[N];
  for (int i = 0; i < N; ++i) acc[i] = sums[i];
  const std::size_t row = tile * kTileRows;
  const std::size_t rows = w.rows - row < kTileRows ? w.rows - row : kTileRows;
  for (int i = 0; i < N && i < n; ++i) {
    if (bias != nullptr) acc[i] = add(acc[i], load_wide(bias + row));
    float* to = out + static_cast<std::size_t>(i) * stride;
    if (rows == kTileRows) {
      if constexpr (kAdd) acc[i] = add(load_wide(to), acc[i]);
      store_wide(to, acc[i]);
      continue;
    }
    float last[kTileRows] = {};
    std::memcpy(last, to, rows * sizeof(float));
    if constexpr (kAdd) acc[i] = add(load_wide(last), acc[i]);
    store_wide(last, acc[i]);
    std::memcpy(to, last, rows * sizeof(float));
  }
}

template <DType kType, bool kAdd, int N>
void float_block(const Packed& w, const float* bias, const Rows& in, std::size_t at, float* out,
                 std::size_t stride, std::size_t tile) {
  Wide acc[N];
  for (Wide& a : acc) a = wide(0.0f);
  if constexpr (is_float(kType)) {
    multiply_floats<kType>(w, tile, in, at, acc);
  } else {
    multiply_dequantised<kType>(w, tile, in, at, acc);
  }
  finish<kAdd>(w, tile, bias, acc, N, out + at * stride, stride);
}

template <DType kType, bool kAdd>
void matmul_float(const Packed& w, const float* bias, const Rows& in, float* out,
                  std::size_t stride, std::size_t begin, std::size_t end) {
  for (std::size_t tile = begin; tile < end; ++tile) {
    float* to = out + (tile - begin) * kTileRows;
    std::size_t at = 0;
    for (; at + kFloatRows <= in.n; at += kFloatRows) {
      float_block<kType, kAdd, kFloatRows>(w, bias, in, at, to, stride, tile);
    }
    for (; at < in.n; ++at) float_block<kType, kAdd, 1>(w, bias, in, at, to, stride, tile);
  }
}

// A block of eight positions, or the last, whose width is 1, 4 or 8; `n` of them are real.
template <DType kType, int N>
void int8_block(const Packed& w, const float* bias, const Place& x, std::size_t n, float* out,
                std::size_t stride, std::size_t tile) {
  for (std::size_t at = 0; at < n; at += N) {
    const Place part{x.values + at * kGroup, x.scales + at, x.sums + at, x.first_sums + at, x.width,
                     x.ahead};
    Wide acc[N];
    for (Wide& a : acc) a = wide(0.0f);
    multiply_int8<kType>(w, tile, part, acc);
    const std::size_t left = n - at;
    finish<false>(w, tile, bias, acc, left < N ? static_cast<int>(left) : N, out + at * stride,
                  stride);
  }
}

// The first eight positions that meet a tile keep the processor busy for longer than its own
// prefetching looks ahead; with one position it does better alone, for the next eight the tile is
// near, and with bytes it was slower (all measured).
constexpr std::size_t kAhead = 4096;

// Bytes of activations that stay in the second-level cache beside a tile.
constexpr std::size_t kNearBytes = 384 * 1024;

// Calls block(place, first position, positions, tile) for every block of eight and every tile, so
// that activations stay near.
template <typename Block>
void by_blocks(const Packed& w, const Rows& in, std::size_t begin, std::size_t end,
               const Block& block) {
  const std::size_t k = w.cols, groups = k / kGroup;
  const std::size_t blocks = (in.n + kBlockRows - 1) / kBlockRows;
  const std::size_t turns = (blocks * kBlockRows * k + kNearBytes - 1) / kNearBytes;
  const std::size_t step = turns == 0 ? blocks : (blocks + turns - 1) / turns;
  for (std::size_t first = 0; first < blocks; first += step) {
    const std::size_t last = first + step < blocks ? first + step : blocks;
    for (std::size_t tile = begin; tile < end; ++tile) {
      for (std::size_t b = first; b < last; ++b) {
        const std::size_t at = b * kBlockRows, n = in.n - at < kBlockRows ? in.n - at : kBlockRows;
        const Place x{in.quants.values + at * k, in.quants.scales + at * groups,
                      in.quants.sums + at * groups, in.quants.first_sums + at * groups,
                      block_width(n), b == first ? kAhead : 0};
        block(x, at, n, tile);
      }
    }
  }
}

template <DType kType>
void matmul_int8(const Packed& w, const float* bias, const Rows& in, float* out,
                 std::size_t stride, std::size_t begin, std::size_t end) {
  by_blocks(w, in, begin, end, [&](const Place& x, std::size_t at, std::size_t n, std::size_t tile) {
    float* to = out + at * stride + (tile - begin) * kTileRows;
    if (x.width == 1) {
      int8_block<kType, 1>(w, bias, x, n, to, stride, tile);
    } else if (x.width == 4 || kInt8Rows == 4) {
      int8_block<kType, 4>(w, bias, x, n, to, stride, tile);
    } else {
      int8_block<kType, kInt8Rows>(w, bias, x, n, to, stride, tile);
    }
  });
}

}  // namespace
}  // namespace miudo
