// The kernels for x86-64 with AVX2, FMA and F16C; only this file is compiled for them.
// The order of these includes matters: the kernels stand on the lanes.
// Read next: kernels/kernels.h.
#include "kernels/tile_avx2.h"
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

extern const Kernels kAvx2Kernels;
const Kernels kAvx2Kernels = table_for(Isa::kAvx2);

}  // namespace miudo
