// A decoder described by plain values: the C++ side of miudo/config.py, field by field.
// Not for: reading files. Read next: model/weights.h.
#pragma once

#include <cstddef>
#include <vector>

#include "kernels/kernels.h"

namespace miudo {

enum class Norm { kRms = 0, kLayer = 1 };
enum class BlockKind { kPre = 0, kPost = 1, kSandwich = 2 };
enum class Parallel { kNone = 0, kTwoNorms = 1, kOneNorm = 2 };
enum class Mlp { kGated = 0, kPlain = 1 };
enum class QkNorm { kNone = 0, kHead = 1, kFull = 2 };

struct LayerConfig {
  std::size_t n_heads = 0, n_kv_heads = 0, head_dim = 0, v_head_dim = 0, d_ff = 0;
  std::size_t window = 0;  // 0: full attention
  std::vector<float> frequencies;  // of the rotated pairs, in radians a position; empty: none
  std::vector<float> slopes;       // ALiBi, one a head; empty: none

  std::size_t group() const { return n_heads / n_kv_heads; }
  std::size_t rotated() const { return 2 * frequencies.size(); }
};

// Queries, keys and values made from narrow latents; kv_rank 0: there are none.
struct LatentConfig {
  std::size_t q_rank = 0;  // 0: queries come straight from the input
  std::size_t kv_rank = 0, rope_dim = 0;
  float norm_eps = 1e-6f;
};

struct ModelConfig {
  std::size_t vocab_size = 0, d_model = 0, max_positions = 0;
  Norm norm = Norm::kRms;
  float norm_eps = 1e-5f;
  bool norm_weight = true, norm_bias = false, embed_norm = false, learned_positions = false;
  BlockKind block = BlockKind::kPre;
  Parallel parallel = Parallel::kNone;
  Mlp mlp = Mlp::kGated;
  Activation activation = Activation::kSilu;
  QkNorm qk_norm = QkNorm::kNone;
  bool qkv_bias = false, o_bias = false, mlp_bias = false, tie_embeddings = true;
  float attention_factor = 1.0f;  // multiplies cosines and sines
  float embed_scale = 1.0f, residual_scale = 1.0f, logit_scale = 1.0f;
  float attn_scale = 0.0f;                         // 0: head_dim^-0.5
  float attn_softcap = 0.0f, logit_softcap = 0.0f;  // 0: none
  LatentConfig latent;
  std::vector<LayerConfig> layers;

  bool norms_before() const { return block != BlockKind::kPost; }
  bool norms_after() const { return block != BlockKind::kPre; }
  bool has_latent() const { return latent.kv_rank != 0; }
};

// Throws Failure(kModelFile) for sizes that no model can have: the C door trusts nobody.
void check_config(const ModelConfig& config);

}  // namespace miudo
