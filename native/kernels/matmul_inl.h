// Matrix products on packed tiles. Compiled once per instruction set; see kernels.h.
// One accumulator an output element, columns ascending, whatever the number N of positions
// that share a weight load. Internal linkage: every including file gets its own copy.
#pragma once

#include "kernels/kernels.h"

namespace miudo {
namespace {

// N positions against the 16 rows of a tile.
template <int N>
struct Sums {
  F8 acc[N][2];
  Sums() {
    for (auto& row : acc) row[0] = row[1] = set1(0.0f);
  }
};

template <int N>
inline void multiply_f32(const Packed& w, std::size_t tile, const Rows& in, std::size_t at,
                         Sums<N>& sums) {
  // The buffer is aligned and its tiles are whole floats.
  const float* p = reinterpret_cast<const float*>(w.data + tile * w.tile_bytes);
  const float* x = in.x + at * in.stride;
  for (std::size_t c = 0; c < w.cols; ++c, p += kTileRows) {
    const F8 low = load(p), high = load(p + 8);
    for (int i = 0; i < N; ++i) {
      const F8 b = set1(x[static_cast<std::size_t>(i) * in.stride + c]);
      sums.acc[i][0] = fma(low, b, sums.acc[i][0]);
      sums.acc[i][1] = fma(high, b, sums.acc[i][1]);
    }
  }
}

template <int kByte, int N>
inline void multiply_byte(const Bytes32& low, const Bytes32& high, F8 scale_low, F8 scale_high,
                          const float* x, std::size_t stride, Sums<N>& sums) {
  const F8 w_low = mul(byte_of_lanes<kByte>(low), scale_low);
  const F8 w_high = mul(byte_of_lanes<kByte>(high), scale_high);
  for (int i = 0; i < N; ++i) {
    const F8 b = set1(x[static_cast<std::size_t>(i) * stride + kByte]);
    sums.acc[i][0] = fma(w_low, b, sums.acc[i][0]);
    sums.acc[i][1] = fma(w_high, b, sums.acc[i][1]);
  }
}

template <int N>
inline void multiply_q8_float(const Packed& w, std::size_t tile, const Rows& in,
                              std::size_t at, Sums<N>& sums) {
  const std::size_t groups = w.cols / kGroup;
  const std::uint8_t* p = w.data + tile * w.tile_bytes;
  const float* x = in.x + at * in.stride;
  for (std::size_t g = 0; g < groups; ++g, p += kGroupBytes) {
    const F8 s0 = load_half(p), s1 = load_half(p + 16);
    for (std::size_t v = 0; v < kGroup / 4; ++v) {
      const Bytes32 low = load_bytes(p + 32 + 64 * v), high = load_bytes(p + 64 + 64 * v);
      const float* xv = x + g * kGroup + 4 * v;
      multiply_byte<0>(low, high, s0, s1, xv, in.stride, sums);
      multiply_byte<1>(low, high, s0, s1, xv, in.stride, sums);
      multiply_byte<2>(low, high, s0, s1, xv, in.stride, sums);
      multiply_byte<3>(low, high, s0, s1, xv, in.stride, sums);
    }
  }
}

template <int N>
inline void multiply_q8_int8(const Packed& w, std::size_t tile, const Rows& in,
                             std::size_t at, Sums<N>& sums) {
  const std::size_t groups = w.cols / kGroup;
  const std::uint8_t* p = w.data + tile * w.tile_bytes;
  const std::int8_t* x = in.quants + at * w.cols;
  const float* sx = in.scales + at * groups;
  for (std::size_t g = 0; g < groups; ++g, p += kGroupBytes) {
    I8 dots[N][2];
    for (auto& row : dots) row[0] = row[1] = zero_int();
    for (std::size_t v = 0; v < kGroup / 4; ++v) {
      const Bytes32 low = load_bytes(p + 32 + 64 * v), high = load_bytes(p + 64 + 64 * v);
      for (int i = 0; i < N; ++i) {
        const std::int8_t* four = x + static_cast<std::size_t>(i) * w.cols + g * kGroup + 4 * v;
        dots[i][0] = dot4(dots[i][0], low, four);
        dots[i][1] = dot4(dots[i][1], high, four);
      }
    }
    // Multiply and add, not fused: NumPy can say the same bits.
    const F8 s0 = load_half(p), s1 = load_half(p + 16);
    for (int i = 0; i < N; ++i) {
      const F8 s = set1(sx[static_cast<std::size_t>(i) * groups + g]);
      sums.acc[i][0] = add(sums.acc[i][0], mul(to_floats(dots[i][0]), mul(s0, s)));
      sums.acc[i][1] = add(sums.acc[i][1], mul(to_floats(dots[i][1]), mul(s1, s)));
    }
  }
}

enum class Kind { kF32, kF32Add, kQ8Float, kQ8Int8 };

template <Kind kKind>
constexpr bool kIsF32 = kKind == Kind::kF32 || kKind == Kind::kF32Add;

// Adds what `from` holds for the first `rows` rows of a tile.
inline void add_held(const float* from, std::size_t rows, F8& low, F8& high) {
  float held[kTileRows] = {};
  std::memcpy(held, from, rows * sizeof(float));
  low = add(load(held), low);
  high = add(load(held + 8), high);
}

template <Kind kKind, int N>
void block(const Packed& w, const float* bias, const Rows& in, std::size_t at, float* out,
           std::size_t out_stride, std::size_t tile) {
  Sums<N> sums;
  if constexpr (kIsF32<kKind>) multiply_f32<N>(w, tile, in, at, sums);
  if constexpr (kKind == Kind::kQ8Float) multiply_q8_float<N>(w, tile, in, at, sums);
  if constexpr (kKind == Kind::kQ8Int8) multiply_q8_int8<N>(w, tile, in, at, sums);
  const std::size_t row = tile * kTileRows;
  const std::size_t rows = w.rows - row < kTileRows ? w.rows - row : kTileRows;
  for (int i = 0; i < N; ++i) {
    if (bias != nullptr) {
      sums.acc[i][0] = add(sums.acc[i][0], load(bias + row));
      sums.acc[i][1] = add(sums.acc[i][1], load(bias + row + 8));
    }
    float* to = out + (at + static_cast<std::size_t>(i)) * out_stride + row;
    if constexpr (kKind == Kind::kF32Add) add_held(to, rows, sums.acc[i][0], sums.acc[i][1]);
    if (rows == kTileRows) {
      store(to, sums.acc[i][0]);
      store(to + 8, sums.acc[i][1]);
    } else {
      float last[kTileRows];
      store(last, sums.acc[i][0]);
      store(last + 8, sums.acc[i][1]);
      std::memcpy(to, last, rows * sizeof(float));
    }
  }
}

// The most positions whose accumulators stay in 16 vector registers.
template <Kind kKind>
constexpr int kMost = kIsF32<kKind> ? 6 : 4;

template <Kind kKind>
void matmul(const Packed& w, const float* bias, const Rows& in, float* out,
            std::size_t stride, std::size_t begin, std::size_t end) {
  for (std::size_t tile = begin; tile < end; ++tile) {
    std::size_t at = 0;
    for (; at + kMost<kKind> <= in.n; at += kMost<kKind>) {
      block<kKind, kMost<kKind>>(w, bias, in, at, out, stride, tile);
    }
    switch (in.n - at) {
      case 5: block<kKind, 5>(w, bias, in, at, out, stride, tile); break;
      case 4: block<kKind, 4>(w, bias, in, at, out, stride, tile); break;
      case 3: block<kKind, 3>(w, bias, in, at, out, stride, tile); break;
      case 2: block<kKind, 2>(w, bias, in, at, out, stride, tile); break;
      case 1: block<kKind, 1>(w, bias, in, at, out, stride, tile); break;
      default: break;
    }
  }
}

}  // namespace
}  // namespace miudo
