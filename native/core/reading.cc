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

}  // namespace

// NaN is less than everything here; among equals the first stays.
std::size_t best_of(std::span<const float> row, std::span<const Stretch> stretches) {
  std::size_t best = stretches[0].best;
  for (const Stretch& s : stretches) {
    if (row[s.best] > row[best] || (std::isnan(row[best]) && !std::isnan(row[s.best]))) {
      best = s.best;
    }
  }
  return best;
}

void find_best(const Kernels& kernels, std::span<const float> row, std::size_t index,
               std::span<Stretch> stretches) {
  const std::span<const float> own = part(row, index);
  stretches[index].best = index * kStretch + kernels.argmax(own.data(), own.size());
}

void find_sum(const Kernels& kernels, std::span<const float> row, std::size_t index, float top,
              std::span<Stretch> stretches) {
  const std::span<const float> own = part(row, index);
  stretches[index].sum = kernels.sum_exp(own.data(), own.size(), top);
}

double mass_of(std::span<const double> weights, std::size_t index) {
  double mass = 0.0;
  for (const double weight : part(weights, index)) mass += weight;
  return mass;
}

Reading reading_of(std::span<const float> row, std::span<const Stretch> stretches) {
  double total = 0.0;
  for (const Stretch& s : stretches) total += s.sum;
  const std::size_t best = best_of(row, stretches);
  return {best, static_cast<double>(row[best]) + std::log(total)};
}

Reading read_row(const Kernels& kernels, std::span<const float> row, std::span<Stretch> stretches) {
  for (std::size_t i = 0; i < stretches.size(); ++i) find_best(kernels, row, i, stretches);
  const float top = row[best_of(row, stretches)];
  for (std::size_t i = 0; i < stretches.size(); ++i) find_sum(kernels, row, i, top, stretches);
  return reading_of(row, stretches);
}

}  // namespace miudo
