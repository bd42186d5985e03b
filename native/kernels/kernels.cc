#include "kernels/kernels.h"

namespace miudo {

extern const Kernels kPortableKernels;
#if defined(MIUDO_HAVE_X86)
extern const Kernels kAvx2Kernels, kAvx512Kernels;
extern const Matmul kAvx512Masks[kSparseTypes];

namespace {

Kernels with_masks(Kernels kernels) {
  for (std::size_t i = 0; i < kSparseTypes; ++i) kernels.matmul_masks[i] = kAvx512Masks[i];
  return kernels;
}

}  // namespace
#endif
#if defined(MIUDO_HAVE_ARM)
extern const Kernels kNeonKernels;
#endif

const Kernels& kernels_for(Isa isa) {
#if defined(MIUDO_HAVE_X86)
  if (isa == Isa::kAvx2) return kAvx2Kernels;
  if (isa == Isa::kAvx512) {
    static const Kernels spreading = with_masks(kAvx512Kernels);
    return spreads_bytes() ? spreading : kAvx512Kernels;
  }
#endif
#if defined(MIUDO_HAVE_ARM)
  if (isa == Isa::kNeon) return kNeonKernels;
#endif
  static_cast<void>(isa);
  return kPortableKernels;
}

}  // namespace miudo
