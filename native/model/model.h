// What a forward pass reads: config, weights and tables. Immutable once complete.
// Read next: model/forward.h.
#pragma once

#include <algorithm>
#include <vector>

#include "kernels/kernels.h"
#include "model/config.h"
#include "model/kv_cache.h"
#include "model/weights.h"

namespace miudo {

struct Model {
  Model(ModelConfig c, Isa isa, bool int8, CacheType cache)
      : config(std::move(c)),
        kernels(kernels_for(isa)),
        int8_activations(int8),
        weights(config, int8 && kernels.has_masks()),
        layout(config, cache) {
    for (const LayerConfig& layer : config.layers) rotation_of.push_back(find_rotation(layer));
  }

  const CacheKernels& cache_kernels() const {
    return kernels.cache[static_cast<std::size_t>(layout.type())];
  }

  ModelConfig config;
  const Kernels& kernels;
  bool int8_activations;  // for matrices in blocks; others always take floats
  Weights weights;
  CacheLayout layout;
  std::vector<std::vector<float>> rotations;  // the distinct frequencies
  std::vector<std::size_t> rotation_of;       // by layer

 private:
  std::size_t find_rotation(const LayerConfig& layer) {
    if (layer.frequencies.empty()) return 0;  // never looked up
    const auto found = std::find(rotations.begin(), rotations.end(), layer.frequencies);
    const auto index = static_cast<std::size_t>(found - rotations.begin());
    if (found == rotations.end()) rotations.push_back(layer.frequencies);
    return index;
  }
};

}  // namespace miudo
