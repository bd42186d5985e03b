// What the machine offers: instruction set and cores, each lowered by an environment variable.
// Read next: kernels/kernels.h, which maps an instruction set to functions.
#pragma once

namespace miudo {

enum class Isa { kPortable, kAvx2, kAvx512, kNeon };  // each better than those before it

constexpr Isa kIsas[] = {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kNeon};

// The best that the processor and this build have; MIUDO_ISA=portable|avx2|avx512|neon can
// only lower it.
// Throws Failure(kRequest) for a name that is unknown or not available here.
Isa choose_isa();

const char* isa_name(Isa isa);
bool isa_available(Isa isa);
// Whether a processor with AVX-512 has VBMI2 too.
bool spreads_bytes();

// `wanted` if above 0, else MIUDO_THREADS, else the cores this process may run on.
int choose_threads(int wanted);

}  // namespace miudo
