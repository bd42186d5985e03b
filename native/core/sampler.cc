#include "core/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
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

std::int32_t Sampler::sample(std::span<const float> logits, const miudo_sampling& settings,
                             std::uint64_t position, std::span<const std::int32_t> seen,
                             const std::uint8_t* mask) {
  adjust(logits, settings, seen, mask);
  const auto best = std::max_element(values_.begin(), values_.end());
  if (!std::isfinite(*best)) nothing_to_draw();
  if (!(settings.temperature > 0.0)) return static_cast<std::int32_t>(best - values_.begin());
  for (double& value : values_) value /= settings.temperature;
  return draw(settings, position);
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

// ids_, ascending: all with a finite value, or the top_k greatest, the lowest id among equals.
void Sampler::choose(std::size_t top_k) {
  ids_.clear();
  for (std::size_t i = 0; i < values_.size(); ++i) {
    if (std::isfinite(values_[i])) ids_.push_back(static_cast<std::int32_t>(i));
  }
  if (top_k == 0 || top_k >= ids_.size()) return;
  const auto better = [this](std::int32_t a, std::int32_t b) {
    const double x = values_[static_cast<std::size_t>(a)], y = values_[static_cast<std::size_t>(b)];
    return x > y || (!(x < y) && a < b);
  };
  const auto middle = ids_.begin() + static_cast<std::ptrdiff_t>(top_k);
  std::partial_sort(ids_.begin(), middle, ids_.end(), better);
  ids_.resize(top_k);
  std::sort(ids_.begin(), ids_.end());
}

void Sampler::weigh() {
  double top = kNever;
  for (const std::int32_t id : ids_) top = std::max(top, values_[static_cast<std::size_t>(id)]);
  weights_.clear();
  for (const std::int32_t id : ids_) {
    weights_.push_back(std::exp(values_[static_cast<std::size_t>(id)] - top));
  }
}

// Keeps an id while the mass before it is below top_p. A heap sorts no more than that.
void Sampler::keep_nucleus(double top_p) {
  const double limit = top_p * std::accumulate(weights_.begin(), weights_.end(), 0.0);
  const auto worse = [this](std::uint32_t a, std::uint32_t b) {
    return weights_[a] < weights_[b] || (!(weights_[a] > weights_[b]) && a > b);
  };
  order_.resize(ids_.size());
  std::iota(order_.begin(), order_.end(), 0u);
  std::make_heap(order_.begin(), order_.end(), worse);
  double sum = 0.0;
  auto rest = order_.end();  // the kept ones gather behind it
  while (rest != order_.begin()) {
    const double w = weights_[order_.front()];
    sum += w;
    if (!(sum - w < limit)) break;
    std::pop_heap(order_.begin(), rest--, worse);
  }
  order_.erase(order_.begin(), rest);
  std::sort(order_.begin(), order_.end());
  for (std::size_t i = 0; i < order_.size(); ++i) {
    ids_[i] = ids_[order_[i]];
    weights_[i] = weights_[order_[i]];
  }
  ids_.resize(order_.size());
  weights_.resize(order_.size());
}

std::int32_t Sampler::draw(const miudo_sampling& settings, std::uint64_t position) {
  choose(static_cast<std::size_t>(settings.top_k));
  if (ids_.empty()) nothing_to_draw();
  weigh();
  if (settings.top_p < 1.0) keep_nucleus(settings.top_p);
  double sum = 0.0;
  for (double& w : weights_) {  // cumulative from here on; the greatest weight is 1
    const bool kept = !(settings.min_p > 0.0) || w >= settings.min_p;
    w = kept ? sum += w : sum;
  }
  // What min_p dropped adds nothing, so that no point falls on it.
  const double point = uniform(settings.seed, settings.request, position) * sum;
  const auto above = std::upper_bound(weights_.begin(), weights_.end(), point);
  if (above != weights_.end()) return ids_[static_cast<std::size_t>(above - weights_.begin())];
  const auto last = std::lower_bound(weights_.begin(), weights_.end(), sum);
  return ids_[static_cast<std::size_t>(last - weights_.begin())];
}

}  // namespace miudo
