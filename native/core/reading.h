// What is read off a row of logits: the most probable id, log sum exp, and what ids weigh in a draw,
// by stretches of fixed length, so that workers can share one row and still make the same bits.
// For: core/step.cc and core/score.cc. Not for: drawing (core/sampler.h).
#pragma once

#include <cstddef>
#include <span>

#include "kernels/kernels.h"

namespace miudo {

constexpr std::size_t kStretch = 512;  // floats hold a short sum, a double the sum of sums

struct Stretch {
  float top = 0.0f;      // the greatest logit; -inf if all are NaN
  double sum = 0.0;      // of e^(x - the row's greatest)
  double mass = 0.0;     // of weights, where these are wanted
};

struct Reading {
  std::size_t best;
  double logsumexp;  // NaN if any logit is
};

constexpr std::size_t stretches_of(std::size_t vocab) { return (vocab + kStretch - 1) / kStretch; }

// Of stretch `index`: first its top, then, when all have theirs and `top` is the row's, its sum.
void find_top(const Kernels& kernels, std::span<const float> row, std::size_t index,
              std::span<Stretch> stretches);
float top_of(std::span<const Stretch> stretches);
void find_sum(const Kernels& kernels, std::span<const float> row, std::size_t index, float top,
              std::span<Stretch> stretches);
// The sum of weights [V] in stretch `index`: of every eighth, then of these eight.
double mass_of(std::span<const double> weights, std::size_t index);
Reading reading_of(std::span<const float> row, std::span<const Stretch> stretches);

// All of it on one worker; `stretches` is space.
Reading read_row(const Kernels& kernels, std::span<const float> row, std::span<Stretch> stretches);

}  // namespace miudo
