// What stands for position between embedding and scores: rotations and ALiBi. The numbers come
// with the config; nothing here computes a power.
#include <cmath>

#include "model/forward.h"

namespace miudo {

// Angles are products in float32, as trained models had them.
void find_turns(const Pass& pass, std::size_t row, std::size_t position) {
  const float factor = pass.model.config.attention_factor;
  for (std::size_t r = 0; r < pass.model.rotations.size(); ++r) {
    const std::vector<float>& frequencies = pass.model.rotations[r];
    float* cos = pass.stream().turns[r].data() + row * 2 * frequencies.size();
    float* sin = cos + frequencies.size();
    for (const float frequency : frequencies) {
      const float angle = static_cast<float>(position) * frequency;
      *cos++ = std::cos(angle) * factor;
      *sin++ = std::sin(angle) * factor;
    }
  }
}

void rotate(const Pass& pass, std::size_t layer, std::size_t row, float* x) {
  const std::size_t half = pass.model.config.layers[layer].frequencies.size();
  if (half == 0) return;
  const std::size_t r = pass.model.rotation_of[layer];
  const float* cos = pass.stream().turns[r].data() + row * 2 * half;
  pass.model.kernels.rotate(x, cos, cos + half, half);
}

void add_distances(float slope, std::size_t past, float* scores, std::size_t n) {
  const auto count = static_cast<int>(n), before = static_cast<int>(past);
  for (int j = 0; j < count; ++j) scores[j] += slope * static_cast<float>(j - before);
}

}  // namespace miudo
