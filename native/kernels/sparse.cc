#include "kernels/sparse.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace miudo {
namespace {

constexpr std::size_t kMaskBytes = 4, kScaleBytes = 2;

std::uint32_t word_at(const std::uint8_t* p) {
  std::uint32_t word;
  std::memcpy(&word, p, sizeof(word));
  return word;
}

std::size_t count(std::uint32_t mask) { return static_cast<std::size_t>(std::popcount(mask)); }

// The parts of a matrix in a file.
struct Parts {
  const std::uint8_t *masks, *scales, *numbers;
  std::size_t groups;
  bool whole;  // numbers of 8 bits, not 4

  explicit Parts(const SparseMatrix& m)
      : masks(m.bytes),
        scales(m.bytes + m.rows * (m.cols / kGroup) * kMaskBytes),
        numbers(m.bytes + sparse_head(m.rows, m.cols)),
        groups(m.cols / kGroup),
        whole(m.type == DType::kSparse8) {}

  std::uint32_t mask(std::size_t row, std::size_t g) const {
    return word_at(masks + (row * groups + g) * kMaskBytes);
  }
  const std::uint8_t* scale(std::size_t row, std::size_t g) const {
    return scales + (row * groups + g) * kScaleBytes;
  }
  // Number i in two's complement, the upper half 0 where there are 4 bits.
  std::uint8_t number(std::size_t i) const {
    return whole ? numbers[i] : static_cast<std::uint8_t>(numbers[i / 2] >> (i % 2 * 4) & 15u);
  }
};

std::size_t bytes_of(bool whole, std::size_t n) { return whole ? n : (n + 1) / 2; }

// Whether a quad has more than two bits: its count and 5 carry into the fourth bit.
bool has_three(std::uint32_t mask) {
  const std::uint32_t two = (mask & 0x55555555u) + (mask >> 1 & 0x55555555u);
  const std::uint32_t four = (two & 0x33333333u) + (two >> 2 & 0x33333333u);
  return ((four + 0x55555555u) & 0x88888888u) != 0;
}

// A group of numbers that are all zero, and a number of one in its place; of 4 bits, zero is 8.
void clear_group(bool whole, std::uint8_t* group, std::size_t size) {
  std::memset(group, whole ? 0 : 0x88, size);
}
void put(bool whole, std::size_t line, std::size_t half, std::size_t byte, std::uint8_t number,
         std::uint8_t* group) {
  std::uint8_t& at = group[line * kLine + byte];
  at = static_cast<std::uint8_t>(at ^ number << (whole ? 0 : 4 * half));
}
void put_dense(bool whole, std::size_t r, std::size_t c, std::uint8_t number,
               std::uint8_t* group) {
  const std::size_t quad = c / 4;
  put(whole, whole ? quad : quad % 4, quad / 4, 4 * r + c % 4, number, group);
}

// Where number `i` of a row's quad lies in a group of pairs.
struct PairPlace {
  std::size_t unit, byte;  // the pair of quads

  PairPlace(std::size_t row, std::size_t quad, std::size_t i)
      : unit(quad / 2), byte(4 * row + quad % 2 * 2 + i) {}
  std::size_t line(bool whole) const { return whole ? unit : unit % 2; }
};

// One row of a group: `next` is its first number.
void pack_pairs(const Parts& from, std::uint32_t mask, std::size_t r, std::size_t next,
                std::uint8_t* group) {
  std::uint8_t* numbers = group + kLine;
  std::size_t in_quad[kQuads] = {};
  for (std::uint32_t left = mask; left != 0; left &= left - 1) {
    const auto c = static_cast<std::size_t>(std::countr_zero(left));
    const PairPlace at(r, c / 4, in_quad[c / 4]++);
    group[at.byte] = static_cast<std::uint8_t>(group[at.byte] | c % 4 << (2 * at.unit));
    put(from.whole, at.line(from.whole), at.unit / 2, at.byte, from.number(next++), numbers);
  }
}

void pack_dense(const Parts& from, std::uint32_t mask, std::size_t r, std::size_t next,
                std::uint8_t* group) {
  for (std::uint32_t left = mask; left != 0; left &= left - 1) {
    const auto c = static_cast<std::size_t>(std::countr_zero(left));
    put_dense(from.whole, r, c, from.number(next++), group);
  }
}

}  // namespace

std::size_t sparse_head(std::size_t rows, std::size_t cols) {
  return cols % kGroup != 0 ? 0 : rows * (cols / kGroup) * (kMaskBytes + kScaleBytes);
}

std::size_t sparse_bytes(DType type, std::size_t rows, std::size_t cols,
                         const std::uint8_t* bytes) {
  const std::size_t head = sparse_head(rows, cols);
  if (head == 0) return 0;
  const SparseMatrix m{type, rows, cols, bytes};
  return head + bytes_of(type == DType::kSparse8, first_numbers(m).back());
}

bool is_pairs(const SparseMatrix& m) {
  for (std::size_t i = 0; i < m.rows * (m.cols / kGroup); ++i) {
    if (has_three(word_at(m.bytes + i * kMaskBytes))) return false;
  }
  return true;
}

std::vector<std::size_t> first_numbers(const SparseMatrix& m) {
  const std::size_t groups = m.cols / kGroup, tiles = (m.rows + kTileRows - 1) / kTileRows;
  std::vector<std::size_t> first(tiles + 1);
  std::size_t n = 0;
  for (std::size_t tile = 0; tile < tiles; ++tile) {
    first[tile] = n;
    const std::size_t end = std::min(m.rows, (tile + 1) * kTileRows) * groups;
    for (std::size_t i = tile * kTileRows * groups; i < end; ++i) {
      n += count(word_at(m.bytes + i * kMaskBytes));
    }
  }
  first[tiles] = n;
  return first;
}

void pack_sparse_tile(const SparseMatrix& m, std::size_t tile, std::size_t first, bool pairs,
                      std::uint8_t* to, std::size_t tile_bytes) {
  const Parts from(m);
  const TileLayout at(pairs ? pairs_layout(m.type) : TileLayout(format_of(dense_of(m.type))));
  const std::size_t head = pairs ? kLine : 0;
  std::memset(to, 0, tile_bytes);
  for (std::size_t g = 0; g < from.groups; ++g) {
    clear_group(from.whole, to + at.group_at(g) + head, at.group - head);
  }
  const std::size_t begin = tile * kTileRows, rows = std::min(kTileRows, m.rows - begin);
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t g = 0; g < from.groups; ++g) {
      std::uint8_t* scales = to + at.pair_at(g) + g % 2 * kTileRows * kScaleBytes;
      std::memcpy(scales + r * kScaleBytes, from.scale(begin + r, g), kScaleBytes);
      const std::uint32_t mask = from.mask(begin + r, g);
      (pairs ? pack_pairs : pack_dense)(from, mask, r, first, to + at.group_at(g));
      first += count(mask);
    }
  }
}

std::size_t dense_tile_bytes(DType type, std::size_t cols) {
  const std::size_t bytes = TileLayout(format_of(dense_of(type))).size(cols / kGroup);
  return (bytes + kLine - 1) / kLine * kLine;
}

void expand_tile(const Packed& w, std::size_t tile, std::uint8_t* dense) {
  const bool whole = w.type == DType::kSparse8;
  const TileLayout from = pairs_layout(w.type), to(format_of(dense_of(w.type)));
  const std::uint8_t* packed = w.data + tile * w.tile_bytes;
  for (std::size_t g = 0; g < w.cols / kGroup; ++g) {
    const std::uint8_t *places = packed + from.group_at(g), *numbers = places + kLine;
    std::uint8_t* group = dense + to.group_at(g);
    if (g % 2 == 0) std::memcpy(dense + to.pair_at(g), packed + from.pair_at(g), kLine);
    clear_group(whole, group, to.group);
    for (std::size_t unit = 0; unit < kQuads / 2; ++unit) {
      const std::uint8_t* line = numbers + (whole ? unit : unit % 2) * kLine;
      for (std::size_t byte = 0; byte < kLine; ++byte) {
        // A number that is none is zero, and adds nothing to whatever stands in its place.
        const unsigned raw = whole ? line[byte] : (line[byte] >> (unit / 2 * 4) & 15u) ^ 8u;
        const std::size_t column = places[byte] >> (2 * unit) & 3u;
        put_dense(whole, byte / 4, 8 * unit + byte % 4 / 2 * 4 + column,
                  static_cast<std::uint8_t>(raw), group);
      }
    }
  }
}

void multiply_pairs(const Kernels& kernels, const Packed& w, const float* bias, const Rows& in,
                    bool int8, std::uint8_t* space, float* out, std::size_t stride,
                    std::size_t begin, std::size_t end) {
  if (int8) {
    const Matmul pairs = kernels.matmul_pairs[w.type == DType::kSparse8 ? 1 : 0];
    return pairs(w, bias, in, out, stride, begin, end);
  }
  const Matmul dense = kernels.matmul_float[static_cast<std::size_t>(dense_of(w.type))];
  const std::size_t tile_bytes = dense_tile_bytes(w.type, w.cols);
  for (std::size_t tile = begin; tile < end; ++tile) {
    const std::size_t row = tile * kTileRows, rows = std::min(kTileRows, w.rows - row);
    expand_tile(w, tile, space);
    const Packed one{space, rows, w.cols, tile_bytes, dense_of(w.type)};
    dense(one, bias == nullptr ? nullptr : bias + row, in, out + (tile - begin) * kTileRows, stride,
          0, 1);
  }
}

}  // namespace miudo
