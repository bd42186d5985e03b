// How an id is drawn from logits: miudo/sampling.py, step for step, to the last bit.
// For: the engine's step. Not for: random numbers (util/philox.h). Read next: core/sampler.cc.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/miudo.h"

namespace miudo {

// Throws Failure(kRequest) for settings out of the ranges of miudo.protocol.SamplingSettings.
void check_sampling(const miudo_sampling& settings);

class Sampler {
 public:
  // The id for the token at `position`; `seen` are the conversation's ids so far. Throws
  // Failure(kRequest) if every logit is masked or not finite.
  std::int32_t sample(std::span<const float> logits, const miudo_sampling& settings,
                      std::uint64_t position, std::span<const std::int32_t> seen,
                      const std::uint8_t* mask);

 private:
  void adjust(std::span<const float> logits, const miudo_sampling& settings,
              std::span<const std::int32_t> seen, const std::uint8_t* mask);
  void choose(std::size_t top_k);
  void weigh();
  void keep_nucleus(double top_p);
  std::int32_t draw(const miudo_sampling& settings, std::uint64_t position);

  // Space that is kept between calls.
  std::vector<double> values_, weights_;  // of all ids; of those in ids_
  std::vector<std::int32_t> ids_, seen_;
  std::vector<std::uint32_t> order_;  // places in ids_
};

}  // namespace miudo
