// The kernels for 64-bit ARM with the dot product of 8-bit numbers (Raspberry Pi 5, not 4); only
// this file is compiled for it. Read next: kernels/kernels.h.
// The order of these includes matters: the kernels stand on the lanes.
#include "kernels/simd_neon.h"
//
#include "kernels/matmul_inl.h"
//
#include "kernels/rows_inl.h"
//
#include "kernels/attention_inl.h"

namespace miudo {

extern const Kernels kNeonKernels;
const Kernels kNeonKernels = table_for(Isa::kNeon);

}  // namespace miudo
