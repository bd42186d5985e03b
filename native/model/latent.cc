// Queries, keys and values made from narrow latents (DeepSeek-AI 2024), expanded to ordinary ones:
// cache and scores are those of all other models. A head is N unrotated numbers, then R rotated.
#include <cstring>

#include "model/forward.h"
#include "model/linear.h"

namespace miudo {
namespace {

// Rotates a row's queries and its one rotated part of a key, and deals that and the wide
// projection out to the heads.
void to_heads(const Pass& pass, std::size_t layer, std::size_t row) {
  const ModelConfig& config = pass.model.config;
  const LayerConfig& c = config.layers[layer];
  const LatentConfig& latent = config.latent;
  Scratch& s = pass.scratch;
  const std::size_t plain = c.head_dim - latent.rope_dim, wide = plain + c.v_head_dim;
  float* turned = s.latent_in.data() + row * (latent.kv_rank + latent.rope_dim) + latent.kv_rank;
  rotate(pass, layer, row, turned);
  for (std::size_t head = 0; head < c.n_heads; ++head) {
    const std::size_t at = row * c.n_heads + head;
    rotate(pass, layer, row, s.q.data() + at * c.head_dim + plain);
    const float* from = s.wide.data() + at * wide;
    float* k = s.k.data() + at * c.head_dim;
    std::memcpy(k, from, plain * sizeof(float));
    std::memcpy(k + plain, turned, latent.rope_dim * sizeof(float));
    std::memcpy(s.v.data() + at * c.v_head_dim, from + plain, c.v_head_dim * sizeof(float));
  }
}

}  // namespace

void latent_queries_keys_values(const Pass& pass, std::size_t layer, const float* h) {
  const Model& m = pass.model;
  const Layer& w = m.weights.layers[layer];
  const LatentConfig& latent = m.config.latent;
  const std::size_t d = m.config.d_model, width = latent.kv_rank + latent.rope_dim;
  Scratch& s = pass.scratch;
  const bool latent_queries = latent.q_rank != 0;
  float* latent_q = s.latent_q.data();
  project(pass, h, pass.n, d,
          {{latent_queries ? w.q_a : w.q, latent_queries ? latent_q : s.q.data()},
           {w.kv_a, s.latent_in.data()}});
  for_rows(pass, pass.n, [&](std::size_t row) {
    m.kernels.rms_norm(s.latent_in.data() + row * width, w.kv_a_norm.weight.data(), latent.kv_rank,
                       latent.norm_eps, s.latent.data() + row * latent.kv_rank);
    if (!latent_queries) return;
    float* q = latent_q + row * latent.q_rank;
    m.kernels.rms_norm(q, w.q_a_norm.weight.data(), latent.q_rank, latent.norm_eps, q);
  });
  if (latent_queries) project(pass, latent_q, pass.n, latent.q_rank, {{w.q_b, s.q.data()}});
  project(pass, s.latent.data(), pass.n, latent.kv_rank, {{w.kv_b, s.wide.data()}});
  for_rows(pass, pass.n, [&](std::size_t row) { to_heads(pass, layer, row); });
}

}  // namespace miudo
