#include "model/linear.h"

#include "kernels/sparse.h"

namespace miudo {

bool wants_int8(const Model& model, const Linear& linear) {
  return model.int8_activations && !is_float(linear.weight.type());
}

Rows rows_of(const Pass& pass, const float* x, std::size_t n, std::size_t k, bool int8) {
  const Rows in{x, k, pass.stream().rounded.quants(), n};
  if (!int8) return in;
  const auto round = [&](std::size_t row, std::size_t begin, std::size_t end) {
    pass.model.kernels.quantize(x + row * k + begin * kGroup, k, begin, end, row, n, in.quants);
  };
  if (pass.narrow) {
    for (std::size_t row = 0; row < n; ++row) round(row, 0, k / kGroup);
  } else {
    for_parts(pass, n, k / kGroup, round);
  }
  return in;
}

void multiply(const Pass& pass, const Linear& linear, const Rows& in, float* out,
              std::size_t stride, std::size_t begin, std::size_t end) {
  const PackedMatrix& weight = linear.weight;
  const Kernels& kernels = pass.model.kernels;
  const bool int8 = wants_int8(pass.model, linear);
  if (is_sparse(weight.type())) {
    std::uint8_t* const space =
        pass.scratch.expanded.data() +
        static_cast<std::size_t>(pass.worker) * pass.model.weights.expanded_bytes();
    multiply_sparse(kernels, weight.view(), linear.bias.data(), in, int8, space, out, stride, begin,
                    end);
    return;
  }
  const auto type = static_cast<std::size_t>(weight.type());
  const Matmul matmul = int8 ? kernels.matmul_int8[type] : kernels.matmul_float[type];
  matmul(weight.view(), linear.bias.data(), in, out, stride, begin, end);
}

void project(const Pass& pass, const Rows& in, std::initializer_list<Target> targets) {
  std::size_t tiles = 0;
  for (const Target& target : targets) tiles += target.linear.weight.tiles();
  const std::size_t bytes = targets.begin()->linear.weight.view().tile_bytes;
  const std::size_t piece = std::clamp<std::size_t>(kDealtBytes / bytes, 1, 8);
  const auto take = [&](std::size_t begin, std::size_t end) {
    std::size_t base = 0;  // the targets' tiles are counted on, one matrix after the other
    for (const Target& target : targets) {
      const PackedMatrix& weight = target.linear.weight;
      const std::size_t from = std::max(begin, base), to = std::min(end, base + weight.tiles());
      if (from < to) {
        multiply(pass, target.linear, in, target.out + (from - base) * kTileRows, weight.rows(),
                 from - base, to - base);
      }
      base += weight.tiles();
    }
  };
  pass.team.deal(pass.worker, tiles, piece, take, pass.laps);
  if (!pass.adapted.empty()) adapt(pass, in.x, in.stride, {targets.begin(), targets.size()});
}

void project(const Pass& pass, const float* x, std::size_t n, std::size_t k,
             std::initializer_list<Target> targets) {
  const bool int8 = std::any_of(targets.begin(), targets.end(), [&](const Target& target) {
    return wants_int8(pass.model, target.linear);
  });
  project(pass, rows_of(pass, x, n, k, int8), targets);
}

}  // namespace miudo
