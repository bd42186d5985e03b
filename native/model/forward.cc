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
  const std::size_t size = pass.n * c.d_model;
  Scratch& s = pass.scratch;
  float *x = s.x.data(), *mixed = s.projected.data();  // [n, D]
  const auto& add = pass.model.kernels.add;
  const float* h = norm(pass, w.attn_norm, x, s.h.data());
  attention(pass, layer, h, mixed);
  norm(pass, w.attn_post_norm, mixed, mixed);
  if (c.parallel == Parallel::kNone) {
    add(x, mixed, c.residual_scale, size);
    feedforward(pass, layer, norm(pass, w.mlp_norm, x, s.h.data()), mixed);
    norm(pass, w.mlp_post_norm, mixed, mixed);
  } else {
    if (c.parallel == Parallel::kTwoNorms) h = norm(pass, w.mlp_norm, x, s.h.data());
    feedforward(pass, layer, h, s.fed.data());
    add(mixed, s.fed.data(), 1.0f, size);
  }
  add(x, mixed, c.residual_scale, size);
}

}  // namespace

void forward(const Pass& pass) {
  const Weights& w = pass.model.weights;
  Scratch& s = pass.scratch;
  reserve(pass);
  embed(pass);
  for (std::size_t i = 0; i < w.layers.size(); ++i) {
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
  if (c.logit_scale != 1.0f) {
    for (std::size_t i = 0; i < rows * c.vocab_size; ++i) out[i] *= c.logit_scale;
  }
  if (c.logit_softcap > 0.0f) m.kernels.softcap(out, c.logit_softcap, rows * c.vocab_size);
}

}  // namespace miudo
