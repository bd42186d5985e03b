// What a forward pass reads: config, weights and tables. Immutable once complete.
// Read next: model/forward.h.
#pragma once

#include <cmath>
#include <vector>

#include "kernels/kernels.h"
#include "model/config.h"
#include "model/kv_cache.h"
#include "model/weights.h"

namespace miudo {

// The angles of rotary embedding: positions times these, in float32, as trained models had them.
struct Rotation {
  std::size_t head_dim;
  float theta;
  std::vector<float> frequencies;  // [head_dim / 2]
};

struct Model {
  Model(ModelConfig c, Isa isa, bool int8)
      : config(std::move(c)),
        kernels(kernels_for(isa)),
        int8_activations(int8),
        weights(config),
        layout(config) {
    for (const LayerConfig& layer : config.layers) rotation_of.push_back(find_rotation(layer));
  }

  ModelConfig config;
  const Kernels& kernels;
  bool int8_activations;  // for Q8_0 matrices; F32 ones always take floats
  Weights weights;
  CacheLayout layout;
  std::vector<Rotation> rotations;       // the distinct ones
  std::vector<std::size_t> rotation_of;  // by layer

 private:
  std::size_t find_rotation(const LayerConfig& layer) {
    std::size_t i = 0;
    for (; i < rotations.size(); ++i) {
      const Rotation& r = rotations[i];
      if (r.head_dim == layer.head_dim && !(r.theta < layer.rope_theta) &&
          !(layer.rope_theta < r.theta)) {
        return i;
      }
    }
    if (!layer.rotary) return 0;  // never looked up
    Rotation made{layer.head_dim, layer.rope_theta, {}};
    for (std::size_t d = 0; d < layer.head_dim; d += 2) {
      const float power = static_cast<float>(d) / static_cast<float>(layer.head_dim);
      made.frequencies.push_back(1.0f / std::pow(layer.rope_theta, power));
    }
    rotations.push_back(std::move(made));
    return i;
  }
};

}  // namespace miudo
