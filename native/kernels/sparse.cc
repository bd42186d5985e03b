#include "kernels/sparse.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace miudo {
namespace {

constexpr std::size_t kMaskBytes = 4, kScaleBytes = 2;
constexpr std::size_t kMaskHead = kTileRows * (kScaleBytes + kMaskBytes);
constexpr std::size_t kPairBytes = kTileRows * kScaleBytes + 3 * kLine;
constexpr std::size_t kBehind = 64;  // that a kernel may read past the last number
constexpr std::size_t kLaneRows = 4;

std::uint32_t word_at(const std::uint8_t* p) {
  std::uint32_t word;
  std::memcpy(&word, p, sizeof(word));
  return word;
}

// The three parts of a matrix in a file.
struct Stored {
  const std::uint8_t *masks, *scales, *codes;
  std::size_t groups;
  bool bytes;  // numbers of 8 bits, not 4

  Stored(DType type, std::size_t rows, std::size_t cols, const std::uint8_t* all)
      : masks(all),
        scales(all + rows * (cols / kGroup) * kMaskBytes),
        codes(all + sparse_head(rows, cols)),
        groups(cols / kGroup),
        bytes(type == DType::kSparse8) {}

  std::uint32_t mask(std::size_t row, std::size_t g) const {
    return word_at(masks + (row * groups + g) * kMaskBytes);
  }
  // Number i, as a byte of two's complement, its upper half 0 where there are 4 bits.
  std::uint8_t code(std::size_t i) const {
    return bytes ? codes[i] : static_cast<std::uint8_t>(codes[i / 2] >> (i % 2 * 4) & 15u);
  }
};

constexpr std::size_t bytes_of(bool whole, std::size_t n) { return whole ? n : (n + 1) / 2; }

std::uint32_t nibble(std::uint32_t mask, std::size_t quad) { return mask >> (4 * quad) & 15u; }

// A mask of columns with its quads in the order of packed ones, and back.
std::uint32_t folded(std::uint32_t mask) {
  std::uint32_t out = 0;
  for (std::size_t j = 0; j < 4; ++j) {
    out |= (nibble(mask, j) | nibble(mask, j + 4) << 4) << (8 * j);
  }
  return out;
}
std::uint32_t unfolded(std::uint32_t mask) {
  std::uint32_t out = 0;
  for (std::size_t quad = 0; quad < kQuads; ++quad) {
    out |= (mask >> (quad % 4 * 8 + quad / 4 * 4) & 15u) << (4 * quad);
  }
  return out;
}

// Whether no quad has more than two bits.
bool is_pairs(std::uint32_t mask) {
  const std::uint32_t two = (mask & 0x55555555u) + (mask >> 1 & 0x55555555u);
  const std::uint32_t four = (two & 0x33333333u) + (two >> 2 & 0x33333333u);
  return ((four + 0x55555555u) & 0x88888888u) == 0;  // 3 + 5 carries into the fourth bit
}

// The numbers of a group's rows: [row][column], zero where there is none.
using Square = std::uint8_t[kTileRows][kGroup];

// Reads group g of rows from `first` on; `at` holds each row's next number and moves on.
void gather(const Stored& from, std::size_t first, std::size_t count, std::size_t g,
            std::size_t* at, std::uint32_t (&masks)[kTileRows], Square& square) {
  std::memset(square, 0, sizeof(square));
  std::memset(masks, 0, sizeof(masks));
  for (std::size_t r = 0; r < count; ++r) {
    masks[r] = from.mask(first + r, g);
    for (std::uint32_t left = masks[r]; left != 0; left &= left - 1) {
      square[r][std::countr_zero(left)] = from.code(at[r]++);
    }
  }
}

// Calls take(row, column) for every number in the order of packed masks.
template <typename Take>
void each_number(const std::uint32_t (&masks)[kTileRows], const Take& take) {
  for (std::size_t lane = 0; lane < kTileRows; lane += kLaneRows) {
    for (std::size_t quad = 0; quad < kQuads; ++quad) {
      for (std::size_t r = lane; r < lane + kLaneRows; ++r) {
        for (std::uint32_t left = nibble(masks[r], quad); left != 0; left &= left - 1) {
          take(r, 4 * quad + static_cast<std::size_t>(std::countr_zero(left)));
        }
      }
    }
  }
}

// Number i of n in a group of packed masks.
std::uint8_t packed_code(const std::uint8_t* codes, bool whole, std::size_t n, std::size_t i) {
  const std::size_t half = (n + 1) / 2;
  if (whole) return codes[i];
  return static_cast<std::uint8_t>(i < half ? codes[i] & 15u : codes[i - half] >> 4);
}

std::size_t pack_masks(const std::uint32_t (&masks)[kTileRows], const Square& square, bool whole,
                       std::uint8_t* to) {
  std::size_t n = 0;
  for (std::size_t r = 0; r < kTileRows; ++r) {
    const std::uint32_t mask = folded(masks[r]);
    std::memcpy(to + r * kMaskBytes, &mask, sizeof(mask));
    n += static_cast<std::size_t>(std::popcount(mask));
  }
  std::uint8_t* codes = to + kTileRows * kMaskBytes;
  const std::size_t half = (n + 1) / 2;
  std::size_t i = 0;
  std::memset(codes, 0, bytes_of(whole, n));
  each_number(masks, [&](std::size_t r, std::size_t c) {
    const std::uint8_t code = square[r][c];
    if (whole) {
      codes[i] = code;
    } else if (i < half) {
      codes[i] = code;
    } else {
      codes[i - half] = static_cast<std::uint8_t>(codes[i - half] | code << 4);
    }
    ++i;
  });
  return kTileRows * kMaskBytes + bytes_of(whole, n);
}

void pack_pairs(const std::uint32_t (&masks)[kTileRows], const Square& square, std::uint8_t* to) {
  std::uint8_t *places = to, *codes = to + kLine;
  std::memset(places, 0, kLine);
  std::memset(codes, 0x88, 2 * kLine);  // a missing number is 0, which Q4_0 stores as 8
  for (std::size_t r = 0; r < kTileRows; ++r) {
    for (std::size_t quad = 0; quad < kQuads; ++quad) {
      const std::size_t high = quad / 4, v = quad % 4;
      std::size_t byte = 2 * r;
      for (std::uint32_t left = nibble(masks[r], quad); left != 0; left &= left - 1, ++byte) {
        const auto c = static_cast<unsigned>(std::countr_zero(left));
        std::uint8_t& place = places[high * 32 + byte];
        place = static_cast<std::uint8_t>(place | c << (2 * v));
        std::uint8_t& code = codes[v * 32 + byte];
        code = static_cast<std::uint8_t>(code ^ square[r][4 * quad + c] << (4 * high));
      }
    }
  }
}

// A number of two's complement into its place of a dense tile, whose numbers are all zero.
void put(DType type, std::size_t r, std::size_t c, std::uint8_t code, std::uint8_t* group) {
  const std::size_t quad = c / 4;
  if (type == DType::kSparse8) {
    group[quad * kLine + r * 4 + c % 4] = code;
    return;
  }
  std::uint8_t& byte = group[quad % 4 * kLine + r * 4 + c % 4];
  byte = static_cast<std::uint8_t>(byte ^ code << (quad / 4 * 4));
}

void expand_pairs(DType type, const std::uint8_t* from, std::uint8_t* group) {
  const std::uint8_t *places = from, *codes = from + kLine;
  for (std::size_t quad = 0; quad < kQuads; ++quad) {
    const std::size_t high = quad / 4, v = quad % 4;
    for (std::size_t byte = 0; byte < 2 * kTileRows; ++byte) {
      const unsigned c = places[high * 32 + byte] >> (2 * v) & 3u;
      const unsigned code = (codes[v * 32 + byte] >> (4 * high) & 15u) ^ 8u;
      put(type, byte / 2, 4 * quad + c, static_cast<std::uint8_t>(code), group);
    }
  }
}

std::size_t expand_masks(DType type, const std::uint8_t* from, std::uint8_t* group) {
  std::uint32_t masks[kTileRows];
  std::size_t n = 0, i = 0;
  for (std::size_t r = 0; r < kTileRows; ++r) {
    masks[r] = unfolded(word_at(from + r * kMaskBytes));
    n += static_cast<std::size_t>(std::popcount(masks[r]));
  }
  const bool whole = type == DType::kSparse8;
  const std::uint8_t* codes = from + kTileRows * kMaskBytes;
  each_number(masks, [&](std::size_t r, std::size_t c) {
    put(type, r, c, packed_code(codes, whole, n, i++), group);
  });
  return kTileRows * kMaskBytes + bytes_of(whole, n);
}

}  // namespace

std::size_t sparse_head(std::size_t rows, std::size_t cols) {
  return cols % kGroup != 0 ? 0 : rows * (cols / kGroup) * (kMaskBytes + kScaleBytes);
}

std::size_t sparse_bytes(DType type, std::size_t rows, std::size_t cols,
                         const std::uint8_t* bytes) {
  const std::size_t head = sparse_head(rows, cols);
  if (head == 0) return 0;
  const Stored from(type, rows, cols, bytes);
  std::size_t n = 0;
  for (std::size_t i = 0; i < rows * from.groups; ++i) {
    n += static_cast<std::size_t>(std::popcount(word_at(from.masks + i * kMaskBytes)));
  }
  return head + bytes_of(from.bytes, n);
}

SparsePlan plan_sparse(DType type, std::size_t rows, std::size_t cols, const std::uint8_t* bytes) {
  const Stored from(type, rows, cols, bytes);
  const std::size_t tiles = (rows + kTileRows - 1) / kTileRows;
  SparsePlan plan{type == DType::kSparse4, {}, 0};
  plan.starts.resize(tiles + 1);
  TileStart at{0, 0};
  for (std::size_t tile = 0; tile < tiles; ++tile) {
    plan.starts[tile] = at;
    const std::size_t first = tile * kTileRows, last = std::min(rows, first + kTileRows);
    for (std::size_t g = 0; g < from.groups; ++g) {
      std::size_t n = 0;
      for (std::size_t r = first; r < last; ++r) {
        const std::uint32_t mask = from.mask(r, g);
        n += static_cast<std::size_t>(std::popcount(mask));
        plan.pairs = plan.pairs && is_pairs(mask);
      }
      at.packed += kMaskHead + bytes_of(from.bytes, n);
      at.stored += n;
    }
  }
  plan.starts[tiles] = at;
  if (plan.pairs) {
    for (std::size_t t = 0; t <= tiles; ++t) plan.starts[t].packed = t * from.groups * kPairBytes;
  }
  plan.size_bytes = (plan.starts[tiles].packed + 2 * kBehind - 1) / kBehind * kBehind;
  return plan;
}

void pack_sparse_tile(const Packed& to, std::size_t tile, const std::uint8_t* bytes,
                      std::uint8_t* space) {
  const Stored from(to.type, to.rows, to.cols, bytes);
  const std::size_t first = tile * kTileRows, count = std::min(kTileRows, to.rows - first);
  std::size_t at[kTileRows] = {}, next = to.starts[tile].stored;
  for (std::size_t r = 0; r < count; ++r) {
    at[r] = next;
    for (std::size_t g = 0; g < from.groups; ++g) {
      next += static_cast<std::size_t>(std::popcount(from.mask(first + r, g)));
    }
  }
  std::uint8_t* out = space + to.starts[tile].packed;
  for (std::size_t g = 0; g < from.groups; ++g) {
    std::memset(out, 0, kTileRows * kScaleBytes);
    for (std::size_t r = 0; r < count; ++r) {
      std::memcpy(out + r * kScaleBytes, from.scales + ((first + r) * from.groups + g) * kScaleBytes,
                  kScaleBytes);
    }
    out += kTileRows * kScaleBytes;
    std::uint32_t masks[kTileRows];
    Square square;
    gather(from, first, count, g, at, masks, square);
    if (to.pairs) {
      pack_pairs(masks, square, out);
      out += 3 * kLine;
    } else {
      out += pack_masks(masks, square, from.bytes, out);
    }
  }
  // What kernels read past the last number is never used, but must not be what nobody wrote.
  if (tile + 1 == (to.rows + kTileRows - 1) / kTileRows) std::memset(out, 0, kBehind);
}

std::size_t dense_tile_bytes(DType type, std::size_t cols) {
  const std::size_t bytes = TileLayout(format_of(dense_of(type))).size(cols / kGroup);
  return (bytes + kLine - 1) / kLine * kLine;
}

void expand_tile(const Packed& w, std::size_t tile, std::uint8_t* dense) {
  const TileLayout at(format_of(dense_of(w.type)));
  const int zero = w.type == DType::kSparse4 ? 0x88 : 0;
  const std::uint8_t* from = w.data + w.starts[tile].packed;
  for (std::size_t g = 0; g < w.cols / kGroup; ++g) {
    std::uint8_t *header = dense + at.pair_at(g), *group = dense + at.group_at(g);
    if (g % 2 == 0) std::memset(header, 0, at.pair_header);
    std::memcpy(header + g % 2 * kTileRows * kScaleBytes, from, kTileRows * kScaleBytes);
    from += kTileRows * kScaleBytes;
    std::memset(group, zero, at.group);
    if (w.pairs) {
      expand_pairs(w.type, from, group);
      from += 3 * kLine;
    } else {
      from += expand_masks(w.type, from, group);
    }
  }
}

void multiply_sparse(const Kernels& kernels, const Packed& w, const float* bias, const Rows& in,
                     bool int8, std::uint8_t* space, float* out, std::size_t stride,
                     std::size_t begin, std::size_t end) {
  const Matmul few = kernels.matmul_sparse[w.type == DType::kSparse8 ? 1 : 0];
  if (int8 && in.n <= kSparseRows && few != nullptr) {
    return few(w, bias, in, out, stride, begin, end);
  }
  const auto type = static_cast<std::size_t>(dense_of(w.type));
  const Matmul dense = int8 ? kernels.matmul_int8[type] : kernels.matmul_float[type];
  Packed one;
  one.data = space;
  one.cols = w.cols;
  one.tile_bytes = dense_tile_bytes(w.type, w.cols);
  one.type = dense_of(w.type);
  for (std::size_t tile = begin; tile < end; ++tile) {
    const std::size_t row = tile * kTileRows;
    expand_tile(w, tile, space);
    one.rows = std::min(kTileRows, w.rows - row);
    dense(one, bias == nullptr ? nullptr : bias + row, in, out + (tile - begin) * kTileRows, stride,
          0, 1);
  }
}

}  // namespace miudo
