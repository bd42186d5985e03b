// What a processor can do at best, as loops without any memory of a model: plain reading, and
// products on registers.
// For: probe.cc, which times them; one file an instruction set, each compiled for it alone.
// Not for: computing anything.
// Plain data only, as in kernels/packed.h: an inline function that these files shared with others
// could be linked into those.
// A compiler must not see through a loop whose result nobody needs: what it repeats is made
// opaque to it (an empty asm that may have changed it), and what comes out is kept.
// Read next: probe/probe.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace miudo {

struct ProbeLoops {
  const char* isa;
  // Loads each of `bytes` bytes once, in order; a multiple of 256 at an address of 64.
  std::uint64_t (*read)(const std::uint8_t* data, std::size_t bytes);
  // 8-bit products summed in 32 bits, and float products summed; a product and its sum are two
  // operations. A round has as many as the constants say.
  std::uint64_t (*int8)(std::size_t rounds);
  std::uint64_t (*floats)(std::size_t rounds);
  double int8_operations, float_operations;
};

}  // namespace miudo
