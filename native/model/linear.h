// Matrix products of a pass, spread over the threads by tiles of 16 output rows.
// Read next: model/linear.cc.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "model/forward.h"

namespace miudo {

// Below this many multiplications waking a thread costs more than it brings.
constexpr std::size_t kWorthSharing = 1 << 15;

// Targets of one call: q, k and v.
constexpr std::size_t kMostTargets = 3;

// The product for weights of this packing; `int8` activations are for Q8 alone.
Matmul matmul_for(const Kernels& kernels, Packing packing, bool int8);

struct Target {
  const Linear& linear;
  float* out;  // [n, rows of its weight]
};

// Every target's out = weight x + bias, and what the rows' adapters add, for n rows x [n, k]; k
// is the targets' common width.
void project(const Pass& pass, const float* x, std::size_t n, std::size_t k,
             std::initializer_list<Target> targets);

// Calls work(row) for rows [0, n), a few at a time on each thread.
template <typename Work>
void for_rows(const Pass& pass, std::size_t n, const Work& work) {
  constexpr std::size_t kRows = 8;
  pass.pool.run((n + kRows - 1) / kRows, [&](std::size_t task, int) {
    const std::size_t end = std::min(n, (task + 1) * kRows);
    for (std::size_t row = task * kRows; row < end; ++row) work(row);
  });
}

}  // namespace miudo
