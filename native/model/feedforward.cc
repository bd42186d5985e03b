#include "model/forward.h"
#include "model/linear.h"

namespace miudo {
namespace {

// Where the first products' results lie, row by row; up alone where nothing gates it.
struct Inner {
  float *gate, *up;
  std::size_t stride;

  Inner from(std::size_t column) const { return {gate + column, up + column, stride}; }
};

constexpr std::size_t kGroupTiles = kGroup / kTileRows;

// Groups of 32 columns that a worker computes before it activates them: few, so that they are near.
std::size_t groups_at_once(const Pass& pass, const Linear& linear) {
  const std::size_t bytes = kGroupTiles * linear.weight.view().tile_bytes;
  return std::clamp<std::size_t>(kDealtBytes / bytes, 1, panel_groups(pass.n));
}

// Every worker's groups of 32 columns from products to activations. In floats they lie where
// `all` says, else in the worker's own panel until `activate` has rounded them.
template <typename Activate>
void fused(const Pass& pass, const Layer& w, const float* h, const Inner* all,
           const Activate& activate) {
  const Model& m = pass.model;
  const bool gated = m.config.mlp == Mlp::kGated;
  const std::size_t d = m.config.d_model, tiles = w.up.weight.tiles();
  const std::size_t groups = (tiles + kGroupTiles - 1) / kGroupTiles;
  const Rows in =
      rows_of(pass, h, pass.n, d, wants_int8(m, w.up) || (gated && wants_int8(m, w.gate)));
  float* space = pass.scratch.panels.data() + static_cast<std::size_t>(pass.worker) * panels_size(pass.n);
  const auto take = [&](std::size_t begin, std::size_t end) {
    const std::size_t width = (end - begin) * kGroup, last = std::min(end * kGroupTiles, tiles);
    const Inner to = all != nullptr ? all->from(begin * kGroup)
                                    : Inner{space, space + pass.n * width, width};
    if (gated) multiply(pass, w.gate, in, to.gate, to.stride, begin * kGroupTiles, last);
    multiply(pass, w.up, in, to.up, to.stride, begin * kGroupTiles, last);
    for (std::size_t row = 0; row < pass.n; ++row) activate(to, row, begin, end);
  };
  pass.team.deal(pass.worker, groups, groups_at_once(pass, w.up), take, pass.laps);
}

}  // namespace

// out = down(act(gate(h)) * up(h)), or down(act(up(h))).
void feedforward(const Pass& pass, std::size_t layer, const float* h, float* out) {
  const Model& m = pass.model;
  const Layer& w = m.weights.layers[layer];
  const std::size_t d = m.config.d_model, ff = m.config.layers[layer].d_ff;
  Scratch& s = pass.scratch;
  const bool gated = m.config.mlp == Mlp::kGated, int8 = wants_int8(m, w.down);
  const Inner all{s.gate.data(), s.up.data(), ff};
  float* inner = gated ? all.gate : all.up;  // [n, d_ff]
  const auto activate = [&](const Inner& part, std::size_t row, std::size_t begin, std::size_t end) {
    const std::size_t at = row * part.stride;
    const std::size_t count = std::min(end * kGroup, ff) - begin * kGroup;
    float* x = (gated ? part.gate : part.up) + at;
    if (gated) {
      m.kernels.activate_gated(m.config.activation, x, part.up + at, count);
    } else {
      m.kernels.activate(m.config.activation, x, count);
    }
    if (int8) m.kernels.quantize(x, ff, begin, end, row, pass.n, s.activated.quants());
  };
  if (pass.adapted.empty()) {
    fused(pass, w, h, int8 ? nullptr : &all, activate);
  } else {  // adapters add to the products before anything is made of them
    if (gated) {
      project(pass, h, pass.n, d, {{w.gate, all.gate}, {w.up, all.up}});
    } else {
      project(pass, h, pass.n, d, {{w.up, all.up}});
    }
    for_parts(pass, pass.n, (ff + kGroup - 1) / kGroup,
              [&](std::size_t row, std::size_t begin, std::size_t end) {
                activate(all.from(begin * kGroup), row, begin, end);
              });
  }
  project(pass, {inner, ff, s.activated.quants(), pass.n}, {{w.down, out}});
  pass.end(Phase::kFeedForward);
}

}  // namespace miudo
