#include "core/door.h"

#include <vector>

namespace miudo {
namespace {

std::vector<float> numbers_of(const float* from, std::size_t n, const char* name) {
  if (n > 4096) fail(Code::kModelFile, std::string(name) + " are " + std::to_string(n));
  if (n != 0) need(from, name);
  return {from, from + n};
}

LayerConfig layer_of(const miudo_layer& from) {
  LayerConfig to;
  to.n_heads = size_of(from.n_heads, "n_heads");
  to.n_kv_heads = size_of(from.n_kv_heads, "n_kv_heads");
  to.head_dim = size_of(from.head_dim, "head_dim");
  to.v_head_dim = size_of(from.v_head_dim, "v_head_dim");
  to.d_ff = size_of(from.d_ff, "d_ff");
  to.window = size_of(from.window, "window");
  to.frequencies = numbers_of(from.frequencies, from.n_frequencies, "frequencies");
  to.slopes = numbers_of(from.slopes, from.n_slopes, "slopes");
  return to;
}

LatentConfig latent_of(const miudo_latent& from) {
  LatentConfig to;
  to.q_rank = size_of(from.q_rank, "latent.q_rank");
  to.kv_rank = size_of(from.kv_rank, "latent.kv_rank");
  to.rope_dim = size_of(from.rope_dim, "latent.rope_dim");
  to.norm_eps = static_cast<float>(from.norm_eps);
  return to;
}

}  // namespace

ModelConfig config_of(const miudo_config& from) {
  ModelConfig to;
  to.vocab_size = size_of(from.vocab_size, "vocab_size");
  to.d_model = size_of(from.d_model, "d_model");
  to.max_positions = size_of(from.max_positions, "max_positions");
  to.norm = choice<Norm>(from.norm, 2, "norm");
  to.block = choice<BlockKind>(from.block, 3, "block");
  to.parallel = choice<Parallel>(from.parallel, 3, "parallel");
  to.mlp = choice<Mlp>(from.mlp, 2, "mlp");
  to.activation = choice<Activation>(from.activation, 4, "activation");
  to.qk_norm = choice<QkNorm>(from.qk_norm, 3, "qk_norm");
  to.norm_eps = static_cast<float>(from.norm_eps);
  to.norm_weight = from.norm_weight != 0;
  to.norm_bias = from.norm_bias != 0;
  to.embed_norm = from.embed_norm != 0;
  to.learned_positions = from.learned_positions != 0;
  to.qkv_bias = from.qkv_bias != 0;
  to.o_bias = from.o_bias != 0;
  to.mlp_bias = from.mlp_bias != 0;
  to.tie_embeddings = from.tie_embeddings != 0;
  to.attention_factor = static_cast<float>(from.attention_factor);
  to.embed_scale = static_cast<float>(from.embed_scale);
  to.residual_scale = static_cast<float>(from.residual_scale);
  to.logit_scale = static_cast<float>(from.logit_scale);
  to.attn_scale = static_cast<float>(from.attn_scale);
  to.attn_softcap = static_cast<float>(from.attn_softcap);
  to.logit_softcap = static_cast<float>(from.logit_softcap);
  to.latent = latent_of(from.latent);
  if (from.n_layers < 1 || from.n_layers > 1024) {
    fail(Code::kModelFile, "n_layers is not 1 to 1024");
  }
  need(from.layers, "layers");
  for (std::int64_t i = 0; i < from.n_layers; ++i) to.layers.push_back(layer_of(from.layers[i]));
  check_config(to);
  return to;
}

}  // namespace miudo
