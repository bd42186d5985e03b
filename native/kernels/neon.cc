// The kernels for 64-bit ARM with the dot product of bytes (Raspberry Pi 5, not 4); only this
// file is compiled for it.
// The order of these includes matters: the kernels stand on the lanes.
// Read next: kernels/kernels.h.
#include "kernels/tile_neon.h"
//
#include "kernels/lanes8.h"
//
#include "kernels/matmul_inl.h"
//
#include "kernels/vector_inl.h"
//
#include "kernels/attention_inl.h"
//
#include "kernels/nibble_attention_inl.h"
//
#include "kernels/weights_inl.h"
//
#include "kernels/pairs_inl.h"
//
#include "kernels/table_inl.h"

namespace miudo {

extern const Kernels kNeonKernels;
const Kernels kNeonKernels = table_for(Isa::kNeon);

}  // namespace miudo
