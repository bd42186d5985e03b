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
  for_rows(pass, pass.n, [&](std::size_t row) {
    if (gated) {
      m.kernels.activate_gated(m.config.activation, inner + row * ff, s.up.data() + row * ff, ff);
    } else {
      m.kernels.activate(m.config.activation, inner + row * ff, ff);
    }
  });
  project(pass, inner, pass.n, ff, {{w.down, out}});
}

}  // namespace miudo
