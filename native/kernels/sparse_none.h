// Of an instruction set without a faster way through sparse numbers than dense tiles.
// Read next: kernels/sparse.h.
#pragma once

#include "kernels/kernels.h"

namespace miudo {
namespace {

constexpr Matmul kSparse4 = nullptr, kSparse8 = nullptr;

}  // namespace
}  // namespace miudo
