#include "model/forward.h"

#include <cstring>

#include "model/linear.h"

namespace miudo {
namespace {

// x = token row, scaled and normed (+ position row); and the rotations of every row's position.
void embed(const Pass& pass) {
  const Model& m = pass.model;
  const std::size_t d = m.config.d_model;
  Scratch& s = pass.scratch;
  for_rows(pass, pass.n, [&](std::size_t row) {
    const Segment& seg = segment_of(pass, row);
    const std::size_t i = row - seg.row, position = seg.start + i;
    float* x = s.x.data() + row * d;
    m.weights.embed.weight.read_row(static_cast<std::size_t>(seg.ids[i]), x);
    for (std::size_t j = 0; j < d; ++j) x[j] *= m.config.embed_scale;
    if (m.config.embed_norm) norm_row(m, m.weights.embed_norm, d, x, x);
    if (m.config.learned_positions) {
      float* h = s.h.data() + row * d;  // free until the first norm
      m.weights.position.weight.read_row(position, h);
      m.kernels.add(x, h, 1.0f, d);
    }
    find_turns(pass, row, position);
  });
}

void show_hidden(const Pass& pass, std::size_t layer) {
  if (pass.worker != 0) return;
  const std::size_t d = pass.model.config.d_model;
  for (const Segment& seg : pass.segments) {
    if (seg.hidden == nullptr) continue;
    std::memcpy(seg.hidden + (layer * seg.total + seg.offset) * d,
                pass.scratch.x.data() + seg.row * d, seg.n * d * sizeof(float));
  }
}

// One layer: attention and feed-forward, each normed and added to the residual stream x [n, D].
void block(const Pass& pass, std::size_t layer) {
  const ModelConfig& c = pass.model.config;
  const Layer& w = pass.model.weights.layers[layer];
  Scratch& s = pass.scratch;
  float *x = s.x.data(), *mixed = s.projected.data();  // [n, D]
  const auto add = [&](float* to, const float* from, float scale) {
    for_rows(pass, pass.n, [&](std::size_t row) {
      pass.model.kernels.add(to + row * c.d_model, from + row * c.d_model, scale, c.d_model);
    });
  };
  const float* h = norm(pass, w.attn_norm, x, s.h.data());
  attention(pass, layer, h, mixed);
  norm(pass, w.attn_post_norm, mixed, mixed);
  if (c.parallel == Parallel::kNone) {
    add(x, mixed, c.residual_scale);
    feedforward(pass, layer, norm(pass, w.mlp_norm, x, s.h.data()), mixed);
    norm(pass, w.mlp_post_norm, mixed, mixed);
  } else {
    if (c.parallel == Parallel::kTwoNorms) h = norm(pass, w.mlp_norm, x, s.h.data());
    feedforward(pass, layer, h, s.fed.data());
    add(mixed, s.fed.data(), 1.0f);
  }
  add(x, mixed, c.residual_scale);
}

// Asked between the layers of a long pass. All workers give the same answer: they meet after it is
// written, and again before it could change.
bool stopped(const Pass& pass) {
  constexpr std::size_t kLong = 16;
  if (pass.n < kLong) return false;
  if (pass.worker == 0) pass.scratch.stopped = pass.stop.wanted_again();
  pass.team.meet();
  return pass.scratch.stopped;
}

}  // namespace

void forward(const Pass& pass) {
  const Weights& w = pass.model.weights;
  Scratch& s = pass.scratch;
  embed(pass);
  for (std::size_t i = 0; i < w.layers.size(); ++i) {
    if (stopped(pass)) return;
    show_hidden(pass, i);
    block(pass, i);
  }
  show_hidden(pass, w.layers.size());
  norm(pass, w.norm, s.x.data(), s.h.data());
}

void logits(const Pass& pass, const float* hidden, std::size_t rows, float* out) {
  const Model& m = pass.model;
  const ModelConfig& c = m.config;
  project(pass, hidden, rows, c.d_model, {{m.weights.head_linear(), out}});
  if (c.logit_scale == 1.0f && !(c.logit_softcap > 0.0f)) return;
  for_rows(pass, rows, [&](std::size_t row) {
    float* of_row = out + row * c.vocab_size;
    if (c.logit_scale != 1.0f) {
      for (std::size_t i = 0; i < c.vocab_size; ++i) of_row[i] *= c.logit_scale;
    }
    if (c.logit_softcap > 0.0f) m.kernels.softcap(of_row, c.logit_softcap, c.vocab_size);
  });
}

}  // namespace miudo
