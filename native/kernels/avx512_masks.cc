// Products of int8 activations with tiles of masks, for x86-64 with AVX-512 and VBMI2; only this file
// is compiled for the latter. A line of numbers is spread to where its mask has bits, zeros between
// them, and is then a line of a dense tile: the sums are the same, made in the same order, to the bit.
// Read next: kernels/sparse.h for the layout.
#include "kernels/tile_avx512.h"
//
#include "kernels/lanes16.h"
//
#include "kernels/matmul_inl.h"

namespace miudo {
namespace {

inline std::uint64_t mask_at(const std::uint8_t* masks, std::size_t quad) {
  std::uint64_t mask;
  std::memcpy(&mask, masks + quad * sizeof(mask), sizeof(mask));
  return mask;
}

// The numbers from p on where `mask` has bits, `zero` elsewhere. The instruction that reads memory
// itself is many times slower: the compiler must not see that the numbers come from there.
inline Bytes64 spread(std::uint64_t mask, const std::uint8_t* p, Bytes64 zero) {
  __m512i numbers = _mm512_loadu_si512(p);
  asm("" : "+v"(numbers));
  return {_mm512_mask_expand_epi8(zero.v, mask, numbers)};
}

inline std::size_t count(std::uint64_t mask) {
  return static_cast<std::size_t>(__builtin_popcountll(mask));
}

template <int N>
inline void add_quad(Bytes64 numbers, std::size_t quad, const Place& x,
                     Dots<Values::kNibbles> (&dots)[N]) {
  const Factor<Values::kNibbles> factor(numbers);
  for (int i = 0; i < N; ++i) {
    dots[i].add(factor, x.values + static_cast<std::size_t>(i) * kGroup + 4 * quad);
  }
}

// Adds the products of a group of masks and numbers; returns where the numbers end.
template <DType kType, int N>
inline const std::uint8_t* multiply_numbers(const std::uint8_t* masks, const Place& x,
                                            Dots<Values::kNibbles> (&dots)[N]) {
  const std::uint8_t* low = masks + kLine;
  if constexpr (kType == DType::kSparse8) {
    const Bytes64 zero = filled_bytes64(128);
    for (std::size_t quad = 0; quad < kQuads; ++quad) {
      const std::uint64_t mask = mask_at(masks, quad);
      add_quad(spread(mask, low, zero), quad, x, dots);
      low += count(mask);
    }
    return low;
  } else {
    const std::uint8_t* high = low;
    const Bytes64 zero = filled_bytes64(0x88);
    for (std::size_t quad = 0; quad < kQuads / 2; ++quad) {
      const std::uint64_t first = mask_at(masks, quad), second = mask_at(masks, quad + kQuads / 2);
      add_quad(mask_bytes(spread(first, low, zero), 15), quad, x, dots);
      const Bytes64 upper = shift_right<4>(spread(second, high, zero));
      add_quad(mask_bytes(upper, 15), quad + kQuads / 2, x, dots);
      low += count(first);
      high += count(second);
    }
    return low > high ? low : high;
  }
}

template <DType kType, int N>
void masks_block(const Packed& w, const float* bias, Place x, std::size_t n, float* out,
                 std::size_t stride, std::size_t tile) {
  constexpr int kZero = kType == DType::kSparse8 ? 128 : 8;
  const std::uint8_t* p = w.data + tile * w.tile_bytes;
  Wide acc[N];
  for (Wide& a : acc) a = wide(0.0f);
  for (std::size_t g = 0; g < w.cols / kGroup; ++g) {
    Dots<Values::kNibbles> dots[N];
    const Wide scale = wide_half(p);
    p = multiply_numbers<kType>(p + kMasksAt, x, dots);
    for (int i = 0; i < N; ++i) {
      const WideInt total = sub(dots[i].total(), whole(x.sums[i] * kZero));
      acc[i] = add(acc[i], mul(to_wide(total), mul(scale, wide(x.scales[i]))));
    }
    x.values += x.width * kGroup;
    x.scales += x.width;
    x.sums += x.width;
  }
  finish<false>(w, tile, bias, acc, static_cast<int>(n), out, stride);
}

template <DType kType>
void matmul_masks(const Packed& w, const float* bias, const Rows& in, float* out,
                  std::size_t stride, std::size_t begin, std::size_t end) {
  by_blocks(w, in, begin, end, [&](const Place& x, std::size_t at, std::size_t n, std::size_t tile) {
    float* to = out + at * stride + (tile - begin) * kTileRows;
    const auto block = x.width == 1   ? masks_block<kType, 1>
                       : x.width == 4 ? masks_block<kType, 4>
                                      : masks_block<kType, kBlockRows>;
    block(w, bias, x, n, to, stride, tile);
  });
}

}  // namespace

extern const Matmul kAvx512Masks[kSparseTypes];
const Matmul kAvx512Masks[kSparseTypes] = {matmul_masks<DType::kSparse4>,
                                           matmul_masks<DType::kSparse8>};

}  // namespace miudo
