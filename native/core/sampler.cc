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

// order_: finite values, greatest first, lowest id first among equals; the first top_k if not 0.
void Sampler::sort_best(std::size_t top_k) {
  order_.clear();
  for (std::size_t i = 0; i < values_.size(); ++i) {
    if (std::isfinite(values_[i])) order_.push_back(static_cast<std::int32_t>(i));
  }
  const auto better = [this](std::int32_t a, std::int32_t b) {
    const double x = values_[static_cast<std::size_t>(a)], y = values_[static_cast<std::size_t>(b)];
    return x > y || (!(x < y) && a < b);
  };
  if (top_k != 0 && top_k < order_.size()) {
    const auto middle = order_.begin() + static_cast<std::ptrdiff_t>(top_k);
    std::partial_sort(order_.begin(), middle, order_.end(), better);
    order_.resize(top_k);
  } else {
    std::sort(order_.begin(), order_.end(), better);
  }
  if (order_.empty()) nothing_to_draw();
}

std::int32_t Sampler::draw(const miudo_sampling& settings, std::uint64_t position) {
  sort_best(static_cast<std::size_t>(settings.top_k));
  const double top = values_[static_cast<std::size_t>(order_[0])];
  double total = 0.0;
  weights_.clear();
  for (const std::int32_t id : order_) {
    weights_.push_back(std::exp(values_[static_cast<std::size_t>(id)] - top));
    total += weights_.back();
  }
  // Weights are dropped by value, one by one, exactly as the oracle's masks drop them.
  if (settings.top_p < 1.0) {
    const double limit = settings.top_p * total;
    double sum = 0.0;
    std::erase_if(weights_, [&](double w) {
      sum += w;
      return !(sum - w < limit);
    });
  }
  if (settings.min_p > 0.0) {
    const double limit = settings.min_p * weights_[0];
    std::erase_if(weights_, [&](double w) { return !(w >= limit); });
  }
  double sum = 0.0;
  for (double& w : weights_) w = sum += w;  // cumulative from here on
  const double point = uniform(settings.seed, settings.request, position) * sum;
  const auto above = std::upper_bound(weights_.begin(), weights_.end(), point);
  const auto index = std::min(static_cast<std::size_t>(above - weights_.begin()),
                              weights_.size() - 1);
  return order_[index];
}

}  // namespace miudo
