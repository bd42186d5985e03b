// How an id is drawn from logits: miudo/sampling.py, step for step, to the last bit.
// For: the engine's step. Not for: random numbers (util/philox.h). Read next: core/sampler.cc.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/miudo.h"
#include "core/reading.h"
#include "kernels/kernels.h"

namespace miudo {

// Throws Failure(kRequest) for settings out of the ranges of miudo.protocol.SamplingSettings.
void check_sampling(const miudo_sampling& settings);

// Whether logits go into a draw as they are; and whether by their weights alone, without an order.
bool takes_as_is(const miudo_sampling& settings);
bool draws_by_weight(const miudo_sampling& settings);

// The id at the point that settings and position key, by id, of weights [V] whose masses are in
// `stretches`. Some weight is not 0.
std::int32_t draw(std::span<const double> weights, std::span<const Stretch> stretches,
                  const miudo_sampling& settings, std::uint64_t position);

class Sampler {
 public:
  explicit Sampler(const Kernels& kernels) : kernels_(kernels) {}

  // The id for the token at `position`; `seen` are the conversation's ids so far. Throws
  // Failure(kRequest) if every logit is masked or not finite.
  std::int32_t sample(std::span<const float> logits, const miudo_sampling& settings,
                      std::uint64_t position, std::span<const std::int32_t> seen,
                      const std::uint8_t* mask);

 private:
  void adjust(std::span<const float> logits, const miudo_sampling& settings,
              std::span<const std::int32_t> seen, const std::uint8_t* mask);
  void keep_best(std::size_t count);
  void keep_nucleus(double top_p);
  void keep_only();
  double find_masses();

  const Kernels& kernels_;
  // Space that is kept between calls.
  std::vector<double> values_, weights_;  // of all ids; what a filter drops weighs nothing
  std::vector<Stretch> stretches_;
  std::vector<std::int32_t> ids_, seen_;
};

}  // namespace miudo
