// What this machine can do at best, measured when asked: the floor that a model's speed is held
// against.
// For: miudo_probe. Not for: a model's own speed, or the choice of kernels; the variables that
// lower the engine's instruction set (util/cpu.h) do not lower the machine.
// Read next: probe/loops.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "probe/loops.h"

namespace miudo {

enum class ProbeKind : int { kRead, kInt8, kFloat };

// The loops that this processor runs, best first; portable ones come last.
std::span<const ProbeLoops* const> probe_loops();

struct ProbePlan {
  ProbeKind kind;
  const ProbeLoops* loops;
  int threads;
  std::size_t size_bytes;  // for kRead: each thread reads its part over and over
  double seconds;          // for each rate
};

// Fills `rates` with bytes or operations a second, all threads together.
// Throws std::bad_alloc, and std::system_error where the system gives too few threads.
void probe(const ProbePlan& plan, std::span<double> rates);

}  // namespace miudo
