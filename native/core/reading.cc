#include "core/reading.h"

#include <algorithm>
#include <cmath>

namespace miudo {
namespace {

template <typename T>
std::span<const T> part(std::span<const T> row, std::size_t index) {
  const std::size_t start = index * kStretch;
  return row.subspan(start, std::min(kStretch, row.size() - start));
}

// The first of equals, NaN never; 0 if all are NaN. Only one stretch is looked through.
std::size_t best_of(std::span<const float> row, std::span<const Stretch> stretches, float top) {
  const auto of_top = [&](const Stretch& s) { return s.top >= top; };
  const auto stretch = std::find_if(stretches.begin(), stretches.end(), of_top);
  const auto begin = kStretch * static_cast<std::size_t>(stretch - stretches.begin());
  for (std::size_t i = begin; i < row.size(); ++i) {
    if (row[i] >= top) return i;
  }
  return 0;
}

}  // namespace

void find_top(const Kernels& kernels, std::span<const float> row, std::size_t index,
              std::span<Stretch> stretches) {
  const std::span<const float> own = part(row, index);
  stretches[index].top = kernels.greatest(own.data(), own.size());
}

float top_of(std::span<const Stretch> stretches) {
  float top = stretches[0].top;
  for (const Stretch& s : stretches) top = std::max(top, s.top);
  return top;
}

void find_sum(const Kernels& kernels, std::span<const float> row, std::size_t index, float top,
              std::span<Stretch> stretches) {
  const std::span<const float> own = part(row, index);
  stretches[index].sum = kernels.sum_exp(own.data(), own.size(), top);
}

double mass_of(std::span<const double> weights, std::size_t index) {
  const std::span<const double> own = part(weights, index);
  double lane[8] = {};
  for (std::size_t i = 0; i < own.size(); ++i) lane[i % 8] += own[i];
  double mass = 0.0;
  for (const double sum : lane) mass += sum;
  return mass;
}

Reading reading_of(std::span<const float> row, std::span<const Stretch> stretches) {
  double total = 0.0;
  for (const Stretch& s : stretches) total += s.sum;
  const float top = top_of(stretches);
  return {best_of(row, stretches, top), static_cast<double>(top) + std::log(total)};
}

Reading read_row(const Kernels& kernels, std::span<const float> row, std::span<Stretch> stretches) {
  for (std::size_t i = 0; i < stretches.size(); ++i) find_top(kernels, row, i, stretches);
  const float top = top_of(stretches);
  for (std::size_t i = 0; i < stretches.size(); ++i) find_sum(kernels, row, i, top, stretches);
  return reading_of(row, stretches);
}

}  // namespace miudo
