#include <algorithm>

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
  std::size_t longest = 0;
  for (const Segment& seg : pass.segments) longest = std::max(longest, seg.start + seg.n);
  std::size_t head = 0;
  for (const LayerConfig& c : pass.model.config.layers) {
    head = std::max(head, c.head_dim + round_up(c.v_head_dim, 8));
  }
  s.of_worker.resize(static_cast<std::size_t>(pass.team.size()));
  // Four rows of query, output and scores; scores may start inside a tile and end inside one.
  const std::size_t each = 4 * (head + round_up(longest, kTilePositions) + kTilePositions);
  for (Buffer<float>& b : s.of_worker) {
    if (b.size() < each) b = Buffer<float>(each + each / 2);
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
