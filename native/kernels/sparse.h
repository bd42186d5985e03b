// Matrices of which only the numbers that are not zero are kept: how they lie in files and in
// memory, and the way back to dense tiles.
//   In files (miudo/formats/sparse.py): of every 32 columns of every row, a mask of 32 bits; then
//     as many float16 scales; then the numbers of all rows, one after the other, 4 or 8 bits
//     each, as signed ones. What a mask leaves out is zero. The values are those of Q4_0 and Q8_0.
//   In memory, where no quad (4 columns of a row) has more than two numbers: tiles of pairs.
//     A tile is a run of groups, two by two, as dense tiles are: [scales of both][first][second].
//     A group is a line of places, then the numbers. It has four pairs of quads; in each a row has
//     4 bytes: two of the first quad, two of the second. Of places, bits 2u and up are those of
//     pair u: which of its quad's columns a number stands in. Numbers of 8 bits: a line a pair of
//     quads; of 4 bits, as Q4_0 has them: u in the low halves of line u or, from 2 on, in the high
//     halves of line u - 2.
//   All others with enough zeros, where the processor spreads bytes by a mask (VBMI2): tiles of masks.
//     A tile is a run of groups as long as their numbers are: [16 scales][8 masks of 64 bits, a quad
//     each, bit 4 r + c for column c of row r][numbers, quad by quad, as Q4_0 and Q8_0 have them, the
//     latter raised by 128]. Of 4 bits, quads 0 to 3 are in the low halves of the bytes, 4 to 7 in
//     the high ones, both from the first byte on. A line can be read beyond the last number.
//   Elsewhere they are dense in memory: to spread numbers takes longer than to read what the zeros
//   take (docs/sparse.md).
// For: kernels/matrix.cc and products. Not for: floats.
// Read next: kernels/pairs_inl.h and kernels/avx512_masks.cc, which multiply without the way back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/kernels.h"
#include "kernels/packed.h"

namespace miudo {

// Bytes that lie before the numbers, 0 if cols are no whole groups; and of all, by the masks, which
// must be there.
std::size_t sparse_head(std::size_t rows, std::size_t cols);
std::size_t sparse_bytes(DType type, std::size_t rows, std::size_t cols, const std::uint8_t* bytes);

// A matrix as it lies in a file.
struct SparseMatrix {
  DType type;
  std::size_t rows, cols;
  const std::uint8_t* bytes;
};

enum class SparseForm { kDense, kPairs, kMasks };

// How a sparse matrix lies in memory, in whole lines a tile. Of tiles of masks all are as long as the
// longest.
struct SparseLayout {
  SparseForm form;
  std::size_t tile_bytes;
};

// Masks only if they can be multiplied, and where they are shorter than dense tiles by enough to pay.
SparseLayout layout_of(const SparseMatrix& m, bool masks);
// The number of each tile's first number, and of all.
std::vector<std::size_t> first_numbers(const SparseMatrix& m);
// One tile whose first number is `first`: all of its bytes are written.
void pack_sparse_tile(const SparseMatrix& m, std::size_t tile, std::size_t first, SparseForm form,
                      std::uint8_t* to, std::size_t tile_bytes);

// The same numbers as a tile of the dense type, of dense_tile_bytes.
void expand_tile(const Packed& w, std::size_t tile, std::uint8_t* dense);
std::size_t dense_tile_bytes(DType type, std::size_t cols);

// A product with tiles of pairs or masks, as Matmul does it; `space` of dense_tile_bytes is the
// caller's. Int8 activations are multiplied with numbers as they lie; for floats, the reference, each
// tile is made dense. Either way gives the bits of dense tiles.
void multiply_sparse(const Kernels& kernels, const Packed& w, const float* bias, const Rows& in,
                    bool int8, std::uint8_t* space, float* out, std::size_t stride,
                    std::size_t begin, std::size_t end);

}  // namespace miudo
