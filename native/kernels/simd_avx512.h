// Lanes with AVX-512: those of AVX2, to which kernels add wider ones.
// Included by one source file only, the one compiled with these instructions switched on.
#pragma once

#include "kernels/simd_avx2.h"
