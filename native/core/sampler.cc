#include "core/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "util/philox.h"
#include "util/status.h"

namespace miudo {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();

void in_range(const char* name, double value, double low, double high) {
  if (value >= low && value <= high) return;  // not a number is refused too
  fail(Code::kRequest, std::string(name) + " is " + std::to_string(value) + ", allowed " +
                           std::to_string(low) + " to " + std::to_string(high));
}

[[noreturn]] void nothing_to_draw() {
  fail(Code::kRequest, "no id can be drawn: every logit is masked or not finite");
}

}  // namespace

void check_sampling(const miudo_sampling& s) {
  in_range("temperature", s.temperature, 0.0, 100.0);
  in_range("top_k", static_cast<double>(s.top_k), 0.0, 1 << 30);
  in_range("top_p", s.top_p, 1e-6, 1.0);
  in_range("min_p", s.min_p, 0.0, 1.0);
  in_range("repetition_penalty", s.repetition_penalty, 0.01, 100.0);
  if (s.n_bias != 0 && (s.bias_ids == nullptr || s.bias_values == nullptr)) {
    fail(Code::kRequest, "logit_bias is missing");
  }
  for (std::size_t i = 0; i < s.n_bias; ++i) {
    in_range("logit_bias id", s.bias_ids[i], 0.0, std::numeric_limits<std::int32_t>::max());
    in_range("logit_bias", s.bias_values[i], -1e4, 1e4);
  }
}

bool takes_as_is(const miudo_sampling& s) {
  return !(s.repetition_penalty < 1.0) && !(s.repetition_penalty > 1.0) && s.n_bias == 0;
}

bool draws_by_weight(const miudo_sampling& s) {
  return takes_as_is(s) && s.temperature > 0.0 && s.top_k == 0 && !(s.top_p < 1.0);
}

std::int32_t draw(std::span<const double> weights, std::span<const Stretch> stretches,
                  const miudo_sampling& settings, std::uint64_t position) {
  double total = 0.0;
  for (const Stretch& s : stretches) total += s.mass;
  const double point = uniform(settings.seed, settings.request, position) * total;
  double before = 0.0;
  std::size_t found = 0;
  while (found < stretches.size() && !(before + stretches[found].mass > point)) {
    before += stretches[found++].mass;
  }
  // Rounding may leave the point behind the last weight: of the stretch, or of all.
  const bool beyond = found == stretches.size();
  const std::size_t begin = beyond ? 0 : found * kStretch;
  const std::size_t end = beyond ? weights.size() : std::min(begin + kStretch, weights.size());
  double sum = 0.0;
  std::size_t last = begin;
  for (std::size_t i = begin; i < end; ++i) {
    if (!(weights[i] > 0.0)) continue;
    sum += weights[i];
    last = i;
    if (!beyond && sum > point - before) break;
  }
  return static_cast<std::int32_t>(last);
}

std::int32_t Sampler::sample(std::span<const float> logits, const miudo_sampling& settings,
                             std::uint64_t position, std::span<const std::int32_t> seen,
                             const std::uint8_t* mask) {
  adjust(logits, settings, seen, mask);
  const auto best = std::max_element(values_.begin(), values_.end());
  if (!std::isfinite(*best)) nothing_to_draw();
  if (!(settings.temperature > 0.0)) return static_cast<std::int32_t>(best - values_.begin());
  weights_.resize(values_.size());
  kernels_.weights_of_doubles(values_.data(), values_.size(), *best, 1.0 / settings.temperature,
                              weights_.data());
  if (settings.top_k != 0) keep_best(static_cast<std::size_t>(settings.top_k));
  if (settings.top_p < 1.0) keep_nucleus(settings.top_p);
  if (settings.min_p > 0.0) {  // of the greatest weight, which is 1
    for (double& w : weights_) w = w >= settings.min_p ? w : 0.0;
  }
  find_masses();
  return draw(weights_, stretches_, settings, position);
}

void Sampler::adjust(std::span<const float> logits, const miudo_sampling& settings,
                     std::span<const std::int32_t> seen, const std::uint8_t* mask) {
  values_.assign(logits.begin(), logits.end());
  for (std::size_t i = 0; i < values_.size(); ++i) {
    if (std::isnan(values_[i]) || (mask != nullptr && mask[i] == 0)) values_[i] = kNever;
  }
  for (std::size_t i = 0; i < settings.n_bias; ++i) {
    const auto token = static_cast<std::size_t>(settings.bias_ids[i]);
    if (token < values_.size()) values_[token] += settings.bias_values[i];
  }
  const double penalty = settings.repetition_penalty;
  if (!(penalty < 1.0) && !(penalty > 1.0)) return;
  seen_.assign(seen.begin(), seen.end());
  std::sort(seen_.begin(), seen_.end());
  seen_.erase(std::unique(seen_.begin(), seen_.end()), seen_.end());
  for (const std::int32_t token : seen_) {
    double& value = values_[static_cast<std::size_t>(token)];
    value = value > 0.0 ? value / penalty : value * penalty;
  }
}

// The masses of weights_ by stretch; returns their sum.
double Sampler::find_masses() {
  stretches_.resize(stretches_of(weights_.size()));
  double total = 0.0;
  for (std::size_t s = 0; s < stretches_.size(); ++s) {
    stretches_[s].mass = mass_of(weights_, s);
    total += stretches_[s].mass;
  }
  return total;
}

// Drops all but ids_.
void Sampler::keep_only() {
  values_.assign(weights_.size(), 0.0);  // done with
  for (const std::int32_t id : ids_) {
    const auto i = static_cast<std::size_t>(id);
    values_[i] = weights_[i];
  }
  weights_.swap(values_);
}

// The ids of the greatest logits, the lowest id among equals.
void Sampler::keep_best(std::size_t count) {
  ids_.clear();
  for (std::size_t i = 0; i < values_.size(); ++i) {
    if (std::isfinite(values_[i])) ids_.push_back(static_cast<std::int32_t>(i));
  }
  if (count >= ids_.size()) return;
  const auto better = [this](std::int32_t a, std::int32_t b) {
    const double x = values_[static_cast<std::size_t>(a)], y = values_[static_cast<std::size_t>(b)];
    return x > y || (!(x < y) && a < b);
  };
  std::partial_sort(ids_.begin(), ids_.begin() + static_cast<std::ptrdiff_t>(count), ids_.end(),
                    better);
  ids_.resize(count);
  keep_only();
}

// Keeps an id while the mass before it, greatest weights first, is below top_p.
void Sampler::keep_nucleus(double top_p) {
  const double total = find_masses();
  // All that are lighter than this together are not half of what may be left out: to sort the others
  // is enough.
  const double least = 0.5 * (1.0 - top_p) * total / static_cast<double>(weights_.size());
  ids_.clear();
  for (std::size_t i = 0; i < weights_.size(); ++i) {
    if (weights_[i] > least) ids_.push_back(static_cast<std::int32_t>(i));
  }
  std::sort(ids_.begin(), ids_.end(), [this](std::int32_t a, std::int32_t b) {
    const double x = weights_[static_cast<std::size_t>(a)], y = weights_[static_cast<std::size_t>(b)];
    return x > y || (!(x < y) && a < b);
  });
  double sum = 0.0;
  std::size_t kept = 0;
  for (; kept < ids_.size(); ++kept) {
    const double w = weights_[static_cast<std::size_t>(ids_[kept])];
    sum += w;
    if (!(sum - w < top_p * total)) break;
  }
  ids_.resize(kept);
  keep_only();
}

}  // namespace miudo
