// Matrices of which only the numbers that are not zero are kept: how they lie in files and in
// memory, and the way back to dense tiles.
//   In files (miudo/formats/sparse.py): of every 32 columns of every row, a mask of 32 bits; then
//     as many float16 scales; then the numbers of all rows, one after the other, 4 or 8 bits
//     each, as signed ones. What a mask leaves out is zero. The values are those of Q4_0 and Q8_0.
//   In memory tiles of 16 rows, as everywhere, in one of two forms.
//     Pairs, where no quad (4 columns of a row) has more than two: 224 bytes a group,
//       [16 scales][2 lines of places][2 lines of numbers]. Byte 2 row + i of half a line is about
//       number i of the row's pairs: of places, bits 2v and up of the first 32 bytes say which of
//       the four columns of quad v it is, those of the second of quad v + 4; of numbers, the low
//       half of 32 bytes v is quad v's, the high half that of quad v + 4, as Q4_0 has them.
//     Masks, for all others: [16 scales][16 masks][numbers], as long as it is. Byte j of a mask
//       holds quad j and, in its high half, quad j + 4. Numbers come by four rows, by quads, by
//       row, by column. Of n numbers of 4 bits the first half lie in the low halves of bytes.
// For: kernels/matrix.cc and products. Not for: floats.
// Read next: kernels/sparse_avx2.h, which multiplies without the way back.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/kernels.h"
#include "kernels/packed.h"

namespace miudo {

// Bytes that such a matrix has by its masks, which must be there; what lies before the numbers is
// sparse_head. 0 if cols are no whole groups.
std::size_t sparse_head(std::size_t rows, std::size_t cols);
std::size_t sparse_bytes(DType type, std::size_t rows, std::size_t cols, const std::uint8_t* bytes);

// Where the tiles will lie: packed and stored ones, and where the last ends.
struct SparsePlan {
  bool pairs;
  std::vector<TileStart> starts;  // tiles + 1
  std::size_t size_bytes;         // with room to read a vector behind the last number
};

SparsePlan plan_sparse(DType type, std::size_t rows, std::size_t cols, const std::uint8_t* bytes);

// Fills tile `tile` of `to` from the bytes of the whole matrix.
void pack_sparse_tile(const Packed& to, std::size_t tile, const std::uint8_t* bytes,
                      std::uint8_t* space);

// The same numbers as a tile of the dense type: dense_tile_bytes of them.
void expand_tile(const Packed& w, std::size_t tile, std::uint8_t* dense);
std::size_t dense_tile_bytes(DType type, std::size_t cols);

// A product with a sparse matrix, as Matmul does it; `space` of dense_tile_bytes is the caller's.
// One or two positions are multiplied as the numbers lie, where the processor can; else each tile
// is made dense for all positions, which gives the same bits.
void multiply_sparse(const Kernels& kernels, const Packed& w, const float* bias, const Rows& in,
                     bool int8, std::uint8_t* space, float* out, std::size_t stride,
                     std::size_t begin, std::size_t end);

}  // namespace miudo
