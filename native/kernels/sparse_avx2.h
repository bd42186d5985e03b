// Products of one or two positions with sparse numbers as they lie, with AVX2.
// A vector is four columns of eight rows, as in dense tiles; the sums are the same integers, and
// what is made of them in floats happens in the same order: the bits are those of dense tiles.
// For: tokens. Not for: prompts, whose positions share a tile made dense (kernels/sparse.cc).
// Read next: kernels/sparse.h for the layout.
#pragma once

#include "kernels/matmul_inl.h"

namespace miudo {
namespace {

constexpr std::size_t kMaskLine = kTileRows * 4, kScaleLine = kTileRows * 2;
constexpr std::size_t kMostNumbers = kTileRows * kGroup;

inline __m256i all_bytes(int value) { return _mm256_set1_epi8(static_cast<char>(value)); }
inline __m256i all_words(int value) { return _mm256_set1_epi16(static_cast<short>(value)); }
inline __m256i twice(__m128i v) { return _mm256_broadcastsi128_si256(v); }
inline __m256i low_halves(__m256i v) { return _mm256_and_si256(v, all_bytes(15)); }
inline __m256i high_halves(__m256i v) { return low_halves(_mm256_srli_epi16(v, 4)); }
inline __m256i eight_rows(__m256i words) { return _mm256_madd_epi16(words, all_words(1)); }

inline std::uint64_t eight_at(const std::uint8_t* p) {
  std::uint64_t eight;
  std::memcpy(&eight, p, 8);
  return eight;
}

// The numbers of a group, a byte each: of 4 bits, they are n in two halves of bytes.
inline void spread_codes(const std::uint8_t* codes, std::size_t n, std::uint8_t* to) {
  const std::size_t half = (n + 1) / 2;
  // What is written past an end is written again, or read by nobody.
  for (std::size_t i = 0; i < half; i += 32) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), low_halves(load_32(codes + i)));
  }
  for (std::size_t i = 0; i < half; i += 32) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + half + i), high_halves(load_32(codes + i)));
  }
}

// How many numbers precede that of a mask's bit in its quad; 0x80, where there is none. A key is
// three bits that precede, and then the own one.
inline __m256i places_before() {
  constexpr char o = static_cast<char>(0x80);
  return twice(_mm_setr_epi8(o, o, o, o, o, o, o, o, 0, 1, 1, 2, 1, 2, 2, 3));
}
inline __m256i bits_of_halves() {
  return twice(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
}

// Byte kByte of each row's four, in the first of every kStep bytes, else zero.
template <int kByte, int kStep>
inline __m256i byte_of_rows(__m256i v) {
  constexpr auto at = [](int i) {
    return static_cast<char>(i % kStep != 0 ? 0x80 : i / 4 * 4 + kByte);
  };
  return _mm256_shuffle_epi8(
      v, twice(_mm_setr_epi8(at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), at(8), at(9),
                             at(10), at(11), at(12), at(13), at(14), at(15))));
}

// Eight rows of a group: their masks by quads of halves, and how many numbers of the rows above,
// of the same four, precede.
struct HalfMasks {
  __m256i first, second;        // masks of quads 0 to 3 and 4 to 7, a byte each
  __m256i before_first, before_second;
  std::uint64_t at_low, at_high;  // a byte a quad: where its numbers begin, of either four rows
  std::size_t low, high;          // how many these have

  explicit HalfMasks(const std::uint8_t* masks) {
    const __m256i m = load_32(masks);
    first = low_halves(m);
    second = high_halves(m);
    const __m256i a = _mm256_shuffle_epi8(bits_of_halves(), first);
    const __m256i b = _mm256_shuffle_epi8(bits_of_halves(), second);
    const __m256i sum_a = down_rows(a), sum_b = down_rows(b);
    before_first = _mm256_sub_epi8(sum_a, a);
    before_second = _mm256_sub_epi8(sum_b, b);
    const __m256i last = _mm256_unpackhi_epi32(sum_a, sum_b);
    const auto of_low = static_cast<std::uint64_t>(_mm256_extract_epi64(last, 1));
    const auto of_high = static_cast<std::uint64_t>(_mm256_extract_epi64(last, 3));
    constexpr std::uint64_t kOnes = 0x0101010101010101u;
    at_low = of_low * (kOnes << 8);
    at_high = of_high * (kOnes << 8);
    low = of_low * kOnes >> 56;
    high = of_high * kOnes >> 56;
  }

 private:
  static __m256i down_rows(__m256i v) {
    v = _mm256_add_epi8(v, _mm256_slli_si256(v, 4));
    return _mm256_add_epi8(v, _mm256_slli_si256(v, 8));
  }
};

// The numbers of quad kQuad of eight rows, zero where there are none; `low` and `high` are those of
// either four.
template <int kQuad>
inline __m256i quad_of(const HalfMasks& m, const std::uint8_t* low, const std::uint8_t* high) {
  const __m256i masks = byte_of_rows<kQuad % 4, 2>(kQuad < 4 ? m.first : m.second);
  // Bytes of a mask times 8, 4, 2 and 1: a key has its own bit on top.
  const __m256i keys = _mm256_mullo_epi16(masks, _mm256_set1_epi32(0x01020408));
  const __m256i before =
      byte_of_rows<kQuad % 4, 1>(kQuad < 4 ? m.before_first : m.before_second);
  const __m256i places = _mm256_add_epi8(_mm256_shuffle_epi8(places_before(), keys), before);
  const auto sixteen = [](const std::uint8_t* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  };
  const __m256i numbers =
      _mm256_inserti128_si256(_mm256_castsi128_si256(sixteen(low + (m.at_low >> (8 * kQuad) & 255u))),
                              sixteen(high + (m.at_high >> (8 * kQuad) & 255u)), 1);
  return _mm256_shuffle_epi8(numbers, places);
}

// Integer sums of eight rows with N positions, `step` bytes apart.
template <bool kWhole, int N>
inline void half_dots(const HalfMasks& m, const std::uint8_t* numbers, const std::int8_t* x,
                      __m256i (&sums)[N]) {
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  const std::uint8_t* high = numbers + m.low;
  [&]<int... kQuad>(std::integer_sequence<int, kQuad...>) {
    const auto add_quad = [&](__m256i w, int quad) {
      // Of four bits: as Q4_0 has them, with 8 for zero.
      if constexpr (!kWhole) w = _mm256_xor_si256(w, all_bytes(8));
      const __m256i size = _mm256_abs_epi8(w);
      for (int i = 0; i < N; ++i) {
        const __m256i four = four_of(x + i * static_cast<int>(kGroup) + 4 * quad);
        if constexpr (kWhole) {
          const __m256i pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(four, w));
          sums[i] = _mm256_add_epi32(sums[i], eight_rows(pairs));
        } else {
          sums[i] = _mm256_add_epi16(sums[i], _mm256_maddubs_epi16(w, four));
        }
      }
    };
    (add_quad(quad_of<kQuad>(m, numbers, high), kQuad), ...);
  }(std::make_integer_sequence<int, kQuads>());
  if constexpr (!kWhole) {
    for (__m256i& sum : sums) sum = eight_rows(sum);
  }
}

// A group's sums into its accumulators, as multiply_part has it.
template <int N>
inline void add_group(const WideInt (&dots)[N], const std::uint8_t* scales, const Place& x,
                      Wide (&acc)[N]) {
  const Wide scale = wide_half(scales);
  for (int i = 0; i < N; ++i) {
    acc[i] = add(acc[i], mul(to_wide(dots[i]), mul(scale, wide(x.scales[i]))));
  }
}

inline std::size_t numbers_of(const std::uint8_t* masks) {
  std::size_t n = 0;
  for (std::size_t i = 0; i < kMaskLine; i += 8) {
    n += static_cast<std::size_t>(__builtin_popcountll(eight_at(masks + i)));
  }
  return n;
}

// A tile of masks. The numbers of the next group are spread while this one's are read: stores need
// a while before what overlaps two of them can be loaded.
template <bool kWhole, int N>
inline void multiply_masks(const std::uint8_t* p, std::size_t groups, Place x, Wide (&acc)[N]) {
  alignas(64) std::uint8_t spread[2][kMostNumbers + 64];
  const std::uint8_t* masks = p + kScaleLine;
  std::size_t n = numbers_of(masks);
  if constexpr (!kWhole) spread_codes(masks + kMaskLine, n, spread[0]);
  for (std::size_t g = 0; g < groups; ++g) {
    const std::uint8_t* here = p;
    const std::uint8_t* numbers = kWhole ? masks + kMaskLine : spread[g % 2];
    p = masks + kMaskLine + (kWhole ? n : (n + 1) / 2);
    const std::uint8_t* own = masks;
    if (g + 1 < groups) {
      masks = p + kScaleLine;
      n = numbers_of(masks);
      if constexpr (!kWhole) spread_codes(masks + kMaskLine, n, spread[(g + 1) % 2]);
    }
    const HalfMasks first(own);
    __m256i low[N], high[N];
    half_dots<kWhole>(first, numbers, x.values, low);
    half_dots<kWhole>(HalfMasks(own + 32), numbers + first.low + first.high, x.values, high);
    WideInt dots[N];
    for (int i = 0; i < N; ++i) {
      dots[i] = {{low[i]}, {high[i]}};
      if constexpr (!kWhole) dots[i] = sub(dots[i], shift_left<3>(whole(x.sums[i])));
    }
    add_group(dots, here, x, acc);
    x.values += x.width * kGroup;
    x.scales += x.width;
    x.sums += x.width;
  }
}

// The sums of sixteen rows with quads v and v + 4 of the pairs at p; `places` are those of four
// quads. Of one number less 8 times x both parts fit 16 bits.
template <int kShift, int N>
inline void add_pairs(__m256i numbers, __m256i places, const std::int8_t* x, __m256i (&dots)[N],
                      __m256i (&chosen)[N]) {
  const __m256i at = _mm256_and_si256(_mm256_srli_epi16(places, kShift), all_bytes(3));
  for (int i = 0; i < N; ++i) {
    const __m256i own = _mm256_shuffle_epi8(four_of(x + i * static_cast<int>(kGroup)), at);
    dots[i] = _mm256_add_epi16(dots[i], _mm256_maddubs_epi16(numbers, own));
    chosen[i] = _mm256_add_epi16(chosen[i], _mm256_maddubs_epi16(all_bytes(8), own));
  }
}

// A tile of pairs: not the numbers are spread but what they are multiplied with is picked.
template <int N>
inline void multiply_pairs(const std::uint8_t* p, std::size_t groups, Place x, Wide (&acc)[N]) {
  for (std::size_t g = 0; g < groups; ++g, p += kScaleLine + 3 * kLine) {
    const __m256i first = load_32(p + kScaleLine), second = load_32(p + kScaleLine + 32);
    __m256i sums[N], chosen[N];
    for (int i = 0; i < N; ++i) sums[i] = chosen[i] = _mm256_setzero_si256();
    [&]<int... v>(std::integer_sequence<int, v...>) {
      const auto add_line = [&]<int kAt>(std::integral_constant<int, kAt>) {
        const __m256i line = load_32(p + kScaleLine + kLine + kAt * 32);
        add_pairs<2 * kAt>(low_halves(line), first, x.values + 4 * kAt, sums, chosen);
        add_pairs<2 * kAt>(high_halves(line), second, x.values + 16 + 4 * kAt, sums, chosen);
      };
      (add_line(std::integral_constant<int, v>()), ...);
    }(std::make_integer_sequence<int, 4>());
    WideInt dots[N];
    for (int i = 0; i < N; ++i) {
      const __m256i rows = _mm256_sub_epi16(sums[i], chosen[i]);
      dots[i] = {{_mm256_cvtepi16_epi32(_mm256_castsi256_si128(rows))},
                 {_mm256_cvtepi16_epi32(_mm256_extracti128_si256(rows, 1))}};
    }
    add_group(dots, p, x, acc);
    x.values += x.width * kGroup;
    x.scales += x.width;
  }
}

template <bool kWhole, int N>
void multiply_few(const Packed& w, const float* bias, const Rows& in, float* out,
                  std::size_t stride, std::size_t begin, std::size_t end) {
  const std::size_t groups = w.cols / kGroup;
  const Place x{in.quants.values, in.quants.scales, in.quants.sums, in.quants.first_sums,
                block_width(N), 0};
  for (std::size_t tile = begin; tile < end; ++tile) {
    const std::uint8_t* p = w.data + w.starts[tile].packed;
    Wide acc[N];
    for (Wide& a : acc) a = wide(0.0f);
    if (groups != 0 && !kWhole && w.pairs) {
      multiply_pairs(p, groups, x, acc);
    } else if (groups != 0) {
      multiply_masks<kWhole>(p, groups, x, acc);
    }
    finish<false>(w, tile, bias, acc, N, out + (tile - begin) * kTileRows, stride);
  }
}

template <bool kWhole>
void matmul_sparse(const Packed& w, const float* bias, const Rows& in, float* out,
                   std::size_t stride, std::size_t begin, std::size_t end) {
  if (in.n == 1) multiply_few<kWhole, 1>(w, bias, in, out, stride, begin, end);
  if (in.n == 2) multiply_few<kWhole, 2>(w, bias, in, out, stride, begin, end);
}

constexpr Matmul kSparse4 = matmul_sparse<false>, kSparse8 = matmul_sparse<true>;

}  // namespace
}  // namespace miudo
