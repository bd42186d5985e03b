#include "model/forward.h"

#include <cstring>

#include "model/linear.h"

namespace miudo {
namespace {

// x = token row, scaled and normed (+ position row); and the rotations of every row's position.
void embed(const Pass& pass) {
  const Model& m = pass.model;
  const std::size_t d = m.config.d_model;
  Stream& s = pass.stream();
  for_own_rows(pass, pass.n, [&](std::size_t row) {
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
  pass.end(Phase::kEntry);
}

void show_hidden(const Pass& pass, std::size_t layer) {
  if (pass.worker != 0) return;
  const std::size_t d = pass.model.config.d_model;
  for (const Segment& seg : pass.segments) {
    if (seg.hidden == nullptr) continue;
    std::memcpy(seg.hidden + (layer * seg.total + seg.offset) * d,
                pass.stream().x.data() + seg.row * d, seg.n * d * sizeof(float));
  }
}

// The stream's x takes in what scratch.projected holds, which `after` norms first, and `fed`, if there
// is another; returns what the next sublayer reads: x normed by `next`, or x itself.
const float* take_in(const Pass& pass, const NormWeights& after, const float* fed,
                     const NormWeights& next) {
  const Model& m = pass.model;
  const std::size_t d = m.config.d_model;
  Stream& s = pass.stream();
  for_own_rows(pass, pass.n, [&](std::size_t row) {
    float *x = s.x.data() + row * d, *h = s.h.data() + row * d;  // h is free until the last norm
    const float* out = pass.scratch.projected.data() + row * d;
    if (!after.weight.empty()) {
      norm_row(m, after, d, out, h);
      out = h;
    }
    if (fed != nullptr) {
      if (out != h) std::memcpy(h, out, d * sizeof(float));
      m.kernels.add(h, fed + row * d, 1.0f, d);
      out = h;
    }
    m.kernels.add(x, out, m.config.residual_scale, d);
    if (!next.weight.empty()) norm_row(m, next, d, x, h);
  });
  pass.end(Phase::kNorm);
  return next.weight.empty() ? s.x.data() : s.h.data();
}

// One layer: attention and feed-forward, one after the other or side by side. h is what attention
// reads; returns what the next layer does, or the head.
const float* block(const Pass& pass, std::size_t layer, const float* h) {
  const Weights& all = pass.model.weights;
  const Layer& w = all.layers[layer];
  const Parallel parallel = pass.model.config.parallel;
  const bool last = layer + 1 == all.layers.size();
  const NormWeights& next = last ? all.norm : all.layers[layer + 1].attn_norm;
  Scratch& s = pass.scratch;
  float* out = s.projected.data();  // [n, D]
  attention(pass, layer, h, out);
  if (parallel == Parallel::kNone) {
    h = take_in(pass, w.attn_post_norm, nullptr, w.mlp_norm);
    feedforward(pass, layer, h, out);
    return take_in(pass, w.mlp_post_norm, nullptr, next);
  }
  if (parallel == Parallel::kTwoNorms) h = norm(pass, w.mlp_norm);
  feedforward(pass, layer, h, s.fed.data());
  return take_in(pass, w.attn_post_norm, s.fed.data(), next);
}

// Asked between the layers of a long pass. All workers give the same answer: they meet after it is
// written, and again before it could change.
bool stopped(const Pass& pass) {
  constexpr std::size_t kLong = 16;
  if (pass.n < kLong) return false;
  if (pass.worker == 0) pass.scratch.stopped = pass.stop.wanted_again();
  pass.meet();
  return pass.scratch.stopped;
}

}  // namespace

void forward(const Pass& pass) {
  const Weights& w = pass.model.weights;
  embed(pass);
  const float* h = norm(pass, w.layers[0].attn_norm);
  for (std::size_t i = 0; i < w.layers.size(); ++i) {
    if (stopped(pass)) return;
    show_hidden(pass, i);
    h = block(pass, i, h);
  }
  show_hidden(pass, w.layers.size());
}

void logits(const Pass& pass, const float* hidden, std::size_t rows, float* out) {
  const Model& m = pass.model;
  const ModelConfig& c = m.config;
  project(pass, hidden, rows, c.d_model, {{m.weights.head_linear(), out}});
  pass.end(Phase::kHead);
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
