#include "kernels/kernels.h"

namespace miudo {

extern const Kernels kPortableKernels;
#if defined(MIUDO_HAVE_AVX2)
extern const Kernels kAvx2Kernels;
#endif

const Kernels& kernels_for(Isa isa) {
#if defined(MIUDO_HAVE_AVX2)
  if (isa == Isa::kAvx2) return kAvx2Kernels;
#endif
  static_cast<void>(isa);
  return kPortableKernels;
}

}  // namespace miudo
