// The kernels for x86-64 with AVX-512 (F, BW, VL, DQ, VNNI); only this file is compiled for them.
// The order of these includes matters: the kernels stand on the lanes.
// Read next: kernels/kernels.h.
#include "kernels/tile_avx512.h"
//
#include "kernels/lanes16.h"
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

extern const Kernels kAvx512Kernels;
const Kernels kAvx512Kernels = table_for(Isa::kAvx512);

}  // namespace miudo
