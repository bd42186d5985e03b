#include "model/config.h"

#include <string>

#include "util/status.h"

namespace miudo {
namespace {

// The bounds of miudo/limits.py: their products stay far inside 64 bits.
constexpr std::size_t kMaxVocab = std::size_t{1} << 21;
constexpr std::size_t kMaxModel = std::size_t{1} << 16;
constexpr std::size_t kMaxPositions = std::size_t{1} << 26;
constexpr std::size_t kMaxLayers = 1024;
constexpr std::size_t kMaxHeads = 4096;
constexpr std::size_t kMaxHeadDim = 4096;
constexpr std::size_t kMaxFeedForward = std::size_t{1} << 19;

void in_range(const char* name, std::size_t value, std::size_t most) {
  if (value >= 1 && value <= most) return;
  fail(Code::kModelFile, std::string(name) + " is " + std::to_string(value) +
                             ", allowed 1 to " + std::to_string(most));
}

}  // namespace

void check_config(const ModelConfig& config) {
  in_range("vocab_size", config.vocab_size, kMaxVocab);
  in_range("d_model", config.d_model, kMaxModel);
  in_range("max_positions", config.max_positions, kMaxPositions);
  in_range("n_layers", config.layers.size(), kMaxLayers);
  if (!(config.norm_eps > 0.0f && config.norm_eps < 1.0f)) {
    fail(Code::kModelFile, "norm_eps is not between 0 and 1");
  }
  for (const LayerConfig& layer : config.layers) {
    in_range("n_heads", layer.n_heads, kMaxHeads);
    in_range("n_kv_heads", layer.n_kv_heads, layer.n_heads);
    in_range("head_dim", layer.head_dim, kMaxHeadDim);
    in_range("v_head_dim", layer.v_head_dim, kMaxHeadDim);
    in_range("d_ff", layer.d_ff, kMaxFeedForward);
    if (layer.n_heads % layer.n_kv_heads != 0) {
      fail(Code::kModelFile, "n_heads is not a multiple of n_kv_heads");
    }
    if (layer.rotary && layer.head_dim % 2 != 0) fail(Code::kModelFile, "head_dim is odd");
    if (layer.window > kMaxPositions) fail(Code::kModelFile, "window is too long");
    if (!(layer.rope_theta >= 1.0f && layer.rope_theta < 1e12f)) {
      fail(Code::kModelFile, "rope_theta is not between 1 and 1e12");
    }
  }
}

}  // namespace miudo
