// The kernels for any processor.
// The order of these includes matters: the kernels stand on the lanes.
// Read next: kernels/kernels.h.
#include "kernels/tile_portable.h"
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

extern const Kernels kPortableKernels;
const Kernels kPortableKernels = table_for(Isa::kPortable);

}  // namespace miudo
