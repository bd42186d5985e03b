#include "model/forward.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "model/linear.h"

namespace miudo {
namespace {

void reserve(const Pass& pass) {
  const ModelConfig& config = pass.model.config;
  Scratch& s = pass.scratch;
  const std::size_t n = pass.n;
  std::size_t widest = config.d_model;
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
  s.quants.at_least(n * widest);
  s.scales.at_least(n * widest / kGroup + 1);
  s.turns.resize(pass.model.rotations.size());
  for (std::size_t i = 0; i < s.turns.size(); ++i) {
    s.turns[i].at_least(n * pass.model.rotations[i].head_dim);
  }
  s.inner.at_least(kMostTargets * n * pass.adapted.widest());
  std::size_t longest = 0;
  for (const Segment& seg : pass.segments) longest = std::max(longest, seg.start + seg.n);
  std::size_t head = 0;
  for (const LayerConfig& c : config.layers) {
    head = std::max(head, c.head_dim + round_up(c.v_head_dim, 8));
  }
  s.first_task.resize(pass.segments.size() + 1);
  s.of_worker.resize(static_cast<std::size_t>(pass.pool.size()));
  // Four rows of query, output and scores; scores may start inside a tile and end inside one.
  const std::size_t each = 4 * (head + round_up(longest, kTilePositions) + kTilePositions);
  for (Buffer<float>& b : s.of_worker) {
    if (b.size() < each) b = Buffer<float>(each + each / 2);
  }
}

// x = token row (+ position row); and the rotations of every row's position.
void embed(const Pass& pass) {
  const Model& m = pass.model;
  const std::size_t d = m.config.d_model;
  Scratch& s = pass.scratch;
  for_rows(pass, pass.n, [&](std::size_t row) {
    const Segment& seg = segment_of(pass, row);
    const std::size_t i = row - seg.row, position = seg.start + i;
    float* x = s.x.data() + row * d;
    m.weights.embed.weight.read_row(static_cast<std::size_t>(seg.ids[i]), x);
    if (m.config.position == Position::kLearned) {
      float* h = s.h.data() + row * d;  // free until the first norm
      m.weights.position.weight.read_row(position, h);
      m.kernels.add(x, h, d);
    }
    for (std::size_t r = 0; r < m.rotations.size(); ++r) {
      float* turn = s.turns[r].data() + row * m.rotations[r].head_dim;
      for (const float frequency : m.rotations[r].frequencies) {
        const float angle = static_cast<float>(position) * frequency;
        *turn++ = std::cos(angle);
        *turn++ = std::sin(angle);
      }
    }
  });
}

void show_hidden(const Pass& pass, std::size_t layer) {
  const std::size_t d = pass.model.config.d_model;
  for (const Segment& seg : pass.segments) {
    if (seg.hidden == nullptr) continue;
    std::memcpy(seg.hidden + (layer * seg.total + seg.offset) * d,
                pass.scratch.x.data() + seg.row * d, seg.n * d * sizeof(float));
  }
}

}  // namespace

void forward(const Pass& pass) {
  const Weights& w = pass.model.weights;
  Scratch& s = pass.scratch;
  reserve(pass);
  embed(pass);  // x [n, D]
  for (std::size_t i = 0; i < w.layers.size(); ++i) {
    show_hidden(pass, i);
    norm(pass, w.layers[i].attn_norm, s.x.data(), s.h.data());
    attention(pass, i);  // x += attention(h)
    norm(pass, w.layers[i].mlp_norm, s.x.data(), s.h.data());
    feedforward(pass, i);  // x += feedforward(h)
  }
  show_hidden(pass, w.layers.size());
  norm(pass, w.norm, s.x.data(), s.h.data());
}

void logits(const Pass& pass, const float* hidden, std::size_t rows, float* out) {
  project(pass, hidden, rows, pass.model.config.d_model, {{pass.model.weights.head_linear(), out}});
}

void norm(const Pass& pass, const NormWeights& weights, const float* x, float* out) {
  const ModelConfig& c = pass.model.config;
  const Kernels& kernels = pass.model.kernels;
  const std::size_t d = c.d_model;
  for_rows(pass, pass.n, [&](std::size_t row) {
    const float* from = x + row * d;
    float* to = out + row * d;
    if (c.norm == Norm::kRms) {
      kernels.rms_norm(from, weights.weight.data(), d, c.norm_eps, to);
    } else {
      kernels.layer_norm(from, weights.weight.data(), weights.bias.data(), d, c.norm_eps, to);
    }
  });
}

}  // namespace miudo
