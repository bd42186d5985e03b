#include <algorithm>

#include "model/attention.h"
#include "model/linear.h"

namespace miudo {
namespace {

void reserve_latents(const Pass& pass) {
  const ModelConfig& config = pass.model.config;
  const LatentConfig& latent = config.latent;
  Scratch& s = pass.scratch;
  s.narrow_q.at_least(pass.n * latent.q_rank);
  s.narrow.at_least(pass.n * (latent.kv_rank + latent.rope_dim));
  s.latent.at_least(pass.n * latent.kv_rank);
  for (const LayerConfig& c : config.layers) {
    s.wide.at_least(pass.n * c.n_heads * (c.head_dim - latent.rope_dim + c.v_head_dim));
  }
}

void reserve_attention(const Pass& pass) {
  Scratch& s = pass.scratch;
  const auto workers = static_cast<std::size_t>(pass.team.threads());
  for (std::size_t i = 0; i < pass.model.config.layers.size(); ++i) {
    const LayerConfig& c = pass.model.config.layers[i];
    const AttentionPlan plan = plan_attention(pass, c);
    s.of_worker.at_least(workers * worker_size(c));
    // Doubled as it grows: a conversation gets longer with every step.
    const std::size_t parts = (plan.split ? plan.blocks : workers) * parts_size(pass, i, plan);
    if (s.parts.size() < parts) s.parts = Buffer<float>(2 * parts);
  }
}

}  // namespace

void reserve(const Pass& pass) {
  const ModelConfig& config = pass.model.config;
  Scratch& s = pass.scratch;
  const std::size_t n = pass.n;
  std::size_t widest = std::max({config.d_model, config.latent.q_rank, config.latent.kv_rank});
  for (const LayerConfig& c : config.layers) {
    s.q.at_least(n * c.n_heads * c.head_dim);
    s.k.at_least(n * c.n_kv_heads * c.head_dim);
    s.v.at_least(n * c.n_kv_heads * c.v_head_dim);
    s.mixed.at_least(n * c.n_heads * c.v_head_dim);
    s.gate.at_least(n * c.d_ff);
    s.up.at_least(n * c.d_ff);
    widest = std::max({widest, c.d_ff, c.n_heads * c.v_head_dim});
  }
  for (Buffer<float>* b : {&s.x, &s.h, &s.projected}) b->at_least(n * config.d_model);
  if (config.parallel != Parallel::kNone) s.fed.at_least(n * config.d_model);
  const std::size_t rounded = round_up(n, kBlockRows) * widest;
  s.rounded.at_least(rounded);
  s.scales.at_least(rounded / kGroup);
  s.sums.at_least(rounded / kGroup);
  s.first_sums.at_least(rounded / kGroup);
  s.turns.resize(pass.model.rotations.size());
  for (std::size_t i = 0; i < s.turns.size(); ++i) {
    s.turns[i].at_least(n * 2 * pass.model.rotations[i].size());
  }
  s.inner.at_least(kMostTargets * n * pass.adapted.widest());
  if (config.has_latent()) reserve_latents(pass);
  reserve_attention(pass);
}

}  // namespace miudo
