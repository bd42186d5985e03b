// The kernels of every instruction set that this machine has, for tests that hold over all.
#pragma once

#include <vector>

#include "kernels/kernels.h"

namespace miudo::test {

inline std::vector<const Kernels*> all_kernels() {
  std::vector<const Kernels*> all;
  for (const Isa isa : kIsas) {
    if (isa_available(isa)) all.push_back(&kernels_for(isa));
  }
  return all;
}

}  // namespace miudo::test
