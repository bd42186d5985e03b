#include "model/config.h"

#include <cmath>
#include <string>
#include <vector>

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

void within(const char* name, float value, float low, float high) {
  if (value >= low && value <= high) return;  // NaN is not
  fail(Code::kModelFile, std::string(name) + " is " + std::to_string(value) +
                             ", out of its range");
}

void within_or_zero(const char* name, float value) {
  if (value != 0.0f) within(name, value, 1e-6f, 1e6f);
}

void check_finite(const char* name, const std::vector<float>& values) {
  for (const float x : values) {
    if (!std::isfinite(x)) fail(Code::kModelFile, std::string(name) + " holds NaN or infinity");
  }
}

void check_layer(const LayerConfig& layer) {
  in_range("n_heads", layer.n_heads, kMaxHeads);
  in_range("n_kv_heads", layer.n_kv_heads, layer.n_heads);
  in_range("head_dim", layer.head_dim, kMaxHeadDim);
  in_range("v_head_dim", layer.v_head_dim, kMaxHeadDim);
  in_range("d_ff", layer.d_ff, kMaxFeedForward);
  if (layer.n_heads % layer.n_kv_heads != 0) {
    fail(Code::kModelFile, "n_heads is not a multiple of n_kv_heads");
  }
  if (layer.window > kMaxPositions) fail(Code::kModelFile, "window is too long");
  if (layer.rotated() > layer.head_dim) {
    fail(Code::kModelFile, "there are more frequencies than pairs in head_dim");
  }
  if (!layer.slopes.empty() && layer.slopes.size() != layer.n_heads) {
    fail(Code::kModelFile, "slopes are not one a head");
  }
  check_finite("frequencies", layer.frequencies);
  check_finite("slopes", layer.slopes);
}

void check_latent(const ModelConfig& config) {
  const LatentConfig& latent = config.latent;
  in_range("latent.kv_rank", latent.kv_rank, kMaxModel);
  if (latent.q_rank != 0) in_range("latent.q_rank", latent.q_rank, kMaxModel);
  within("latent.norm_eps", latent.norm_eps, 1e-12f, 1.0f);
  if (config.qkv_bias || config.qk_norm != QkNorm::kNone) {
    fail(Code::kModelFile, "latent attention has neither qkv_bias nor qk_norm");
  }
  for (const LayerConfig& layer : config.layers) {
    in_range("latent.rope_dim", latent.rope_dim, layer.head_dim);
    if (layer.n_kv_heads != layer.n_heads) {
      fail(Code::kModelFile, "latent attention has as many keys as queries");
    }
    if (!layer.frequencies.empty() && layer.rotated() != latent.rope_dim) {
      fail(Code::kModelFile, "latent.rope_dim is not what the frequencies rotate");
    }
  }
}

}  // namespace

void check_config(const ModelConfig& config) {
  in_range("vocab_size", config.vocab_size, kMaxVocab);
  in_range("d_model", config.d_model, kMaxModel);
  in_range("max_positions", config.max_positions, kMaxPositions);
  in_range("n_layers", config.layers.size(), kMaxLayers);
  within("norm_eps", config.norm_eps, 1e-12f, 1.0f);
  within("attention_factor", config.attention_factor, 1e-3f, 1e3f);
  within("embed_scale", config.embed_scale, 1e-6f, 1e6f);
  within("residual_scale", config.residual_scale, 1e-6f, 1e6f);
  within("logit_scale", config.logit_scale, 1e-6f, 1e6f);
  within_or_zero("attn_scale", config.attn_scale);
  within_or_zero("attn_softcap", config.attn_softcap);
  within_or_zero("logit_softcap", config.logit_softcap);
  if (config.norm_bias && !config.norm_weight) {
    fail(Code::kModelFile, "norm_bias is set but norm_weight is not");
  }
  if (config.parallel != Parallel::kNone && config.block != BlockKind::kPre) {
    fail(Code::kModelFile, "a parallel block has its norms before");
  }
  for (const LayerConfig& layer : config.layers) check_layer(layer);
  if (config.has_latent()) check_latent(config);
}

}  // namespace miudo
