#include "model/forward.h"
#include "model/linear.h"

namespace miudo {

void norm_row(const Model& model, const NormWeights& weights, std::size_t width, const float* x,
              float* out) {
  const float eps = model.config.norm_eps;
  if (model.config.norm == Norm::kRms) {
    model.kernels.rms_norm(x, weights.weight.data(), width, eps, out);
  } else {
    model.kernels.layer_norm(x, weights.weight.data(), weights.bias.data(), width, eps, out);
  }
}

const float* norm(const Pass& pass, const NormWeights& weights) {
  Stream& s = pass.stream();
  if (weights.weight.empty()) return s.x.data();
  const std::size_t d = pass.model.config.d_model;
  for_own_rows(pass, pass.n, [&](std::size_t row) {
    norm_row(pass.model, weights, d, s.x.data() + row * d, s.h.data() + row * d);
  });
  pass.end(Phase::kNorm);
  return s.h.data();
}

}  // namespace miudo
