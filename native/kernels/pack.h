// Blocks of files into packed tiles, and a lane of a tile back into floats.
// For: kernels/matrix.cc. Not for: floats, whose tiles need no more than a transposition.
// Read next: kernels/packed.h for the layout, miudo/formats/blocks.py for the files'.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/packed.h"

namespace miudo {

// One tile from `count` <= 16 rows of blocks, `row_bytes` apart; all of its bytes are written.
void pack_tile(DType type, std::size_t groups, const std::uint8_t* rows, std::size_t row_bytes,
               std::size_t count, std::uint8_t* tile, std::size_t tile_bytes);

// The 32 dequantised values of one lane of group g.
void read_group(DType type, const std::uint8_t* tile, std::size_t g, std::size_t lane, float* out);

}  // namespace miudo
