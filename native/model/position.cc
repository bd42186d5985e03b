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
    float* turn = pass.scratch.turns[r].data() + row * 2 * frequencies.size();
    for (const float frequency : frequencies) {
      const float angle = static_cast<float>(position) * frequency;
      *turn++ = std::cos(angle) * factor;
      *turn++ = std::sin(angle) * factor;
    }
  }
}

void rotate(const Pass& pass, std::size_t layer, std::size_t row, float* x) {
  const std::size_t half = pass.model.config.layers[layer].frequencies.size();
  if (half == 0) return;
  const std::size_t r = pass.model.rotation_of[layer];
  const float* turn = pass.scratch.turns[r].data() + row * 2 * half;
  for (std::size_t i = 0; i < half; ++i) {
    const float cos = turn[2 * i], sin = turn[2 * i + 1], a = x[i], b = x[i + half];
    x[i] = a * cos - b * sin;
    x[i + half] = b * cos + a * sin;
  }
}

void add_distances(float slope, float* scores, std::size_t n) {
  const auto count = static_cast<int>(n);
  for (int j = 0; j < count; ++j) scores[j] += slope * static_cast<float>(j - (count - 1));
}

}  // namespace miudo
