// A decoder described by plain values: the C++ side of miudo/config.py, field by field.
// Not for: reading files. Read next: model/weights.h.
#pragma once

#include <cstddef>
#include <vector>

#include "kernels/kernels.h"

namespace miudo {

enum class Norm { kRms = 0, kLayer = 1 };
enum class Position { kRope = 0, kLearned = 1 };
enum class Mlp { kGated = 0, kPlain = 1 };
enum class QkNorm { kNone = 0, kHead = 1 };

struct LayerConfig {
  std::size_t n_heads = 0, n_kv_heads = 0, head_dim = 0, v_head_dim = 0, d_ff = 0;
  std::size_t window = 0;  // 0: full attention
  bool rotary = true;
  float rope_theta = 10000.0f;

  std::size_t group() const { return n_heads / n_kv_heads; }
};

struct ModelConfig {
  std::size_t vocab_size = 0, d_model = 0, max_positions = 0;
  Norm norm = Norm::kRms;
  float norm_eps = 1e-5f;
  bool norm_bias = false;
  Position position = Position::kRope;
  Mlp mlp = Mlp::kGated;
  Activation activation = Activation::kSilu;
  QkNorm qk_norm = QkNorm::kNone;
  bool qkv_bias = false, o_bias = false, mlp_bias = false, tie_embeddings = true;
  std::vector<LayerConfig> layers;
};

// Throws Failure(kModelFile) for sizes that no model can have: the C door trusts nobody.
void check_config(const ModelConfig& config);

}  // namespace miudo
