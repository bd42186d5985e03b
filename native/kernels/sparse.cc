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

// A group of 16 rows, those beyond the last without numbers.
struct GroupMasks {
  std::uint32_t row[kTileRows] = {};

  GroupMasks(const Parts& from, std::size_t first, std::size_t rows, std::size_t g) {
    for (std::size_t r = 0; r < rows; ++r) row[r] = from.mask(first + r, g);
  }
  // The bytes of its numbers in a tile of masks.
  std::size_t bytes(bool whole) const {
    std::size_t low = 0, high = 0;
    for (const std::uint32_t mask : row) {
      low += count(mask & 0xFFFFu);
      high += count(mask >> 16);
    }
    return whole ? low + high : std::max(low, high);
  }
};

// The longest tile of masks, without the line that may be read beyond it.
std::size_t longest_tile(const Parts& from, std::size_t rows) {
  std::size_t longest = 0;
  for (std::size_t row = 0; row < rows; row += kTileRows) {
    std::size_t size = from.groups * kNumbersAt;
    for (std::size_t g = 0; g < from.groups; ++g) {
      size += GroupMasks(from, row, std::min(kTileRows, rows - row), g).bytes(from.whole);
    }
    longest = std::max(longest, size);
  }
  return longest;
}

// To spread numbers costs twice the arithmetic of dense tiles, which more bytes left out must pay for
// the fewer a dense tile has (measured, docs/sparse.md).
bool masks_pay(bool whole, std::size_t masks, std::size_t dense) {
  return whole ? 4 * masks <= 3 * dense : 3 * masks <= 2 * dense;
}

// A group whose numbers are more than were counted when the tile got its place, by a file that
// changed since, is left zero.
void pack_masks(const Parts& from, std::size_t begin, std::size_t rows, std::size_t first,
                std::uint8_t* to, std::size_t tile_bytes) {
  std::size_t room = tile_bytes - kLine - from.groups * kNumbersAt;
  std::size_t next[kTileRows];  // of each row, its number that comes next
  for (std::size_t r = 0; r < rows; ++r) {
    next[r] = first;
    for (std::size_t g = 0; g < from.groups; ++g) first += count(from.mask(begin + r, g));
  }
  for (std::size_t g = 0; g < from.groups; ++g) {
    std::size_t ends[2] = {};  // of low halves and of high ones
    for (std::size_t r = 0; r < rows; ++r) {
      std::memcpy(to + r * kScaleBytes, from.scale(begin + r, g), kScaleBytes);
    }
    const GroupMasks masks(from, begin, rows, g);
    const std::size_t bytes = masks.bytes(from.whole);
    if (bytes > room) {
      to += kNumbersAt;
      continue;
    }
    room -= bytes;
    for (std::size_t quad = 0; quad < kQuads; ++quad) {
      std::uint64_t line = 0;
      const std::size_t half = from.whole ? 0 : quad / 4;
      for (std::size_t r = 0; r < rows; ++r) {
        const std::uint32_t four = masks.row[r] >> (4 * quad) & 15u;
        line |= std::uint64_t{four} << (4 * r);
        for (std::size_t i = 0; i < count(four); ++i) {
          const std::uint32_t number = from.number(next[r]++) ^ (from.whole ? 128u : 8u);
          std::uint8_t& at = to[kNumbersAt + ends[half]++];
          at = static_cast<std::uint8_t>(at | number << (4 * half));
        }
      }
      std::memcpy(to + kMasksAt + quad * sizeof(line), &line, sizeof(line));
    }
    to += kNumbersAt + bytes;
  }
}

void expand_masks(bool whole, std::size_t groups, const std::uint8_t* from, std::uint8_t* dense) {
  const TileLayout to(format_of(whole ? DType::kQ8_0 : DType::kQ4_0));
  for (std::size_t g = 0; g < groups; ++g) {
    std::memcpy(dense + to.pair_at(g) + g % 2 * kMasksAt, from, kMasksAt);
    std::uint8_t* group = dense + to.group_at(g);
    clear_group(whole, group, to.group);
    std::size_t ends[2] = {};
    for (std::size_t quad = 0; quad < kQuads; ++quad) {
      std::uint64_t line;
      std::memcpy(&line, from + kMasksAt + quad * sizeof(line), sizeof(line));
      const std::size_t half = whole ? 0 : quad / 4;
      for (; line != 0; line &= line - 1) {
        const auto bit = static_cast<std::size_t>(std::countr_zero(line));
        const unsigned raw = from[kNumbersAt + ends[half]++];
        const unsigned number = whole ? raw ^ 128u : (raw >> (4 * half) & 15u) ^ 8u;
        put_dense(whole, bit / 4, 4 * quad + bit % 4, static_cast<std::uint8_t>(number), group);
      }
    }
    from += kNumbersAt + std::max(ends[0], ends[1]);
  }
}

// Whether tiles of pairs can hold it.
bool is_pairs(const SparseMatrix& m) {
  for (std::size_t i = 0; i < m.rows * (m.cols / kGroup); ++i) {
    if (has_three(word_at(m.bytes + i * kMaskBytes))) return false;
  }
  return true;
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

SparseLayout layout_of(const SparseMatrix& m, bool masks) {
  const auto lines = [](std::size_t bytes) { return (bytes + kLine - 1) / kLine * kLine; };
  if (is_pairs(m)) {
    return {SparseForm::kPairs, lines(pairs_layout(m.type).size(m.cols / kGroup))};
  }
  const std::size_t dense = dense_tile_bytes(m.type, m.cols);
  if (masks) {
    const std::size_t bytes = lines(longest_tile(Parts(m), m.rows) + kLine);
    if (masks_pay(m.type == DType::kSparse8, bytes, dense)) return {SparseForm::kMasks, bytes};
  }
  return {SparseForm::kDense, dense};
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

void pack_sparse_tile(const SparseMatrix& m, std::size_t tile, std::size_t first, SparseForm form,
                      std::uint8_t* to, std::size_t tile_bytes) {
  const Parts from(m);
  const std::size_t begin = tile * kTileRows, rows = std::min(kTileRows, m.rows - begin);
  if (form == SparseForm::kMasks) {
    std::memset(to, 0, tile_bytes);
    return pack_masks(from, begin, rows, first, to, tile_bytes);
  }
  const bool pairs = form == SparseForm::kPairs;
  const TileLayout at(pairs ? pairs_layout(m.type) : TileLayout(format_of(dense_of(m.type))));
  const std::size_t head = pairs ? kLine : 0;
  std::memset(to, 0, tile_bytes);
  for (std::size_t g = 0; g < from.groups; ++g) {
    clear_group(from.whole, to + at.group_at(g) + head, at.group - head);
  }
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
  if (w.masks) return expand_masks(whole, w.cols / kGroup, packed, dense);
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

void multiply_sparse(const Kernels& kernels, const Packed& w, const float* bias, const Rows& in,
                     bool int8, std::uint8_t* space, float* out, std::size_t stride,
                     std::size_t begin, std::size_t end) {
  if (int8) {
    const std::size_t type = w.type == DType::kSparse8 ? 1 : 0;
    const Matmul matmul = (w.masks ? kernels.matmul_masks : kernels.matmul_pairs)[type];
    return matmul(w, bias, in, out, stride, begin, end);
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
