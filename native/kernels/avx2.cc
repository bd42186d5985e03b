// The kernels for x86-64 with AVX2, FMA and F16C; only this file is compiled for them. Read next: kernels/kernels.h.
// The order of these includes matters: the kernels stand on the lanes.
#include "kernels/simd_avx2.h"
//
#include "kernels/matmul_inl.h"
//
#include "kernels/rows_inl.h"
//
#include "kernels/attention_inl.h"

namespace miudo {

extern const Kernels kAvx2Kernels;
const Kernels kAvx2Kernels = table_for(Isa::kAvx2);

}  // namespace miudo
