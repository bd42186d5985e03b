#include "model/forward.h"
#include "model/linear.h"

namespace miudo {

// out = down(act(gate(h)) * up(h)), or down(act(up(h))).
void feedforward(const Pass& pass, std::size_t layer, const float* h, float* out) {
  const Model& m = pass.model;
  const Layer& w = m.weights.layers[layer];
  const std::size_t d = m.config.d_model, ff = m.config.layers[layer].d_ff;
  Scratch& s = pass.scratch;
  const bool gated = m.config.mlp == Mlp::kGated;
  float* inner = gated ? s.gate.data() : s.up.data();  // [n, d_ff]
  if (gated) {
    project(pass, h, pass.n, d, {{w.gate, s.gate.data()}, {w.up, s.up.data()}});
  } else {
    project(pass, h, pass.n, d, {{w.up, s.up.data()}});
  }
  const std::size_t parts = (ff + kGroup - 1) / kGroup;
  const bool int8 = wants_int8(m, w.down);
  for_parts(pass, pass.n, parts, [&](std::size_t row, std::size_t begin, std::size_t end) {
    const std::size_t from = row * ff + begin * kGroup;
    const std::size_t count = std::min(end * kGroup, ff) - begin * kGroup;
    if (gated) {
      m.kernels.activate_gated(m.config.activation, inner + from, s.up.data() + from, count);
    } else {
      m.kernels.activate(m.config.activation, inner + from, count);
    }
    if (int8) m.kernels.quantize(inner + row * ff, ff, begin, end, row, pass.n, s.quants());
  });
  project(pass, inner, pass.n, ff, {{w.down, out}}, int8);
  pass.end(Phase::kFeedForward);
}

}  // namespace miudo
