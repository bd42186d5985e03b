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
//   All others are dense in memory: to spread numbers by masks takes longer than to read what the
//   zeros take (docs/sparse.md).
// For: kernels/matrix.cc and products. Not for: floats.
// Read next: kernels/pairs_inl.h, which multiplies without the way back.
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

// Whether tiles of pairs can hold it.
bool is_pairs(const SparseMatrix& m);
// The number of each tile's first number, and of all.
std::vector<std::size_t> first_numbers(const SparseMatrix& m);
// One tile, of pairs or dense, whose first number is `first`: all of its bytes are written.
void pack_sparse_tile(const SparseMatrix& m, std::size_t tile, std::size_t first, bool pairs,
                      std::uint8_t* to, std::size_t tile_bytes);

// The same numbers as a tile of the dense type, of dense_tile_bytes.
void expand_tile(const Packed& w, std::size_t tile, std::uint8_t* dense);
std::size_t dense_tile_bytes(DType type, std::size_t cols);

// A product with tiles of pairs, as Matmul does it; `space` of dense_tile_bytes is the caller's.
// Int8 activations are multiplied with numbers as they lie; for floats, the reference, each tile is
// made dense. Either way gives the bits of dense tiles.
void multiply_pairs(const Kernels& kernels, const Packed& w, const float* bias, const Rows& in,
                    bool int8, std::uint8_t* space, float* out, std::size_t stride,
                    std::size_t begin, std::size_t end);

}  // namespace miudo
