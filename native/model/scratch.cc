#include <algorithm>

#include "model/attention.h"
#include "model/linear.h"

namespace miudo {
namespace {

void reserve_latents(const Pass& pass) {
  const ModelConfig& config = pass.model.config;
  const LatentConfig& latent = config.latent;
  Scratch& s = pass.scratch;
  s.latent_q.at_least(pass.n * latent.q_rank);
  s.latent_in.at_least(pass.n * (latent.kv_rank + latent.rope_dim));
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
    // Not by plan.split: the team may have another size when it runs. None splits more than four
    // blocks a worker. Doubled as it grows: a conversation gets longer with every step.
    const std::size_t places = std::clamp(plan.blocks, workers, 4 * workers);
    const std::size_t parts = places * parts_size(pass, i, plan);
    if (s.parts.size() < parts) s.parts = Buffer<float>(2 * parts);
  }
}

void reserve_inner(const Pass& pass, const LayerConfig& c, const Linear& down) {
  Scratch& s = pass.scratch;
  const bool int8 = wants_int8(pass.model, down);
  if (int8) s.activated.at_least(pass.n, c.d_ff);
  if (int8 && pass.adapted.empty()) return;
  s.gate.at_least(pass.n * c.d_ff);
  s.up.at_least(pass.n * c.d_ff);
}

// `widest`: the most numbers of a row that a product reads, but for the inner ones.
void reserve_streams(const Pass& pass, std::size_t widest) {
  const std::size_t n = pass.n, d = pass.model.config.d_model;
  std::vector<Stream>& streams = pass.scratch.streams;
  streams.resize(static_cast<std::size_t>(pass.team.threads()));
  for (Stream& s : streams) {
    s.x.at_least(n * d);
    s.h.at_least(n * d);
    s.rounded.at_least(n, widest);
    s.turns.resize(pass.model.rotations.size());
    for (std::size_t i = 0; i < s.turns.size(); ++i) {
      s.turns[i].at_least(n * 2 * pass.model.rotations[i].size());
    }
    if (!pass.narrow) break;
  }
}

}  // namespace

void reserve(const Pass& pass) {
  const ModelConfig& config = pass.model.config;
  Scratch& s = pass.scratch;
  const std::size_t n = pass.n;
  std::size_t widest = std::max({config.d_model, config.latent.q_rank, config.latent.kv_rank});
  for (std::size_t i = 0; i < config.layers.size(); ++i) {
    const LayerConfig& c = config.layers[i];
    s.q.at_least(n * c.n_heads * c.head_dim);
    s.k.at_least(n * c.n_kv_heads * c.head_dim);
    s.v.at_least(n * c.n_kv_heads * c.v_head_dim);
    s.mixed.at_least(n * c.n_heads * c.v_head_dim);
    widest = std::max(widest, c.n_heads * c.v_head_dim);
    reserve_inner(pass, c, pass.model.weights.layers[i].down);
  }
  s.panels.at_least(static_cast<std::size_t>(pass.team.threads()) * panels_size(n));
  s.projected.at_least(n * config.d_model);
  s.expanded.at_least(static_cast<std::size_t>(pass.team.threads()) *
                      pass.model.weights.expanded_bytes());
  reserve_streams(pass, widest);
  if (config.parallel != Parallel::kNone) s.fed.at_least(n * config.d_model);
  s.inner.at_least(kMostTargets * n * pass.adapted.widest());
  if (config.has_latent()) reserve_latents(pass);
  reserve_attention(pass);
}

}  // namespace miudo
