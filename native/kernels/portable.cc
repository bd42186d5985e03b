// The kernels for any processor. Read next: kernels/kernels.h.
// The order of these includes matters: the kernels stand on the lanes.
#include "kernels/simd_portable.h"
//
#include "kernels/matmul_inl.h"
//
#include "kernels/rows_inl.h"
//
#include "kernels/attention_inl.h"

namespace miudo {

extern const Kernels kPortableKernels;
const Kernels kPortableKernels = table_for(Isa::kPortable);

}  // namespace miudo
