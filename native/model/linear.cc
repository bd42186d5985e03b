#include "model/linear.h"

namespace miudo {
namespace {

// Of tiles that a worker takes at a time: about a microsecond of reading.
constexpr std::size_t kPieceBytes = 32 * 1024;

void compute(const Pass& pass, const Target& target, const Rows& in, std::size_t begin,
             std::size_t end) {
  const PackedMatrix& weight = target.linear.weight;
  const Kernels& kernels = pass.model.kernels;
  const auto type = static_cast<std::size_t>(weight.type());
  const Matmul matmul = wants_int8(pass.model, target.linear) ? kernels.matmul_int8[type]
                                                              : kernels.matmul_float[type];
  matmul(weight.view(), target.linear.bias.data(), in, target.out, weight.rows(), begin, end);
}

}  // namespace

bool wants_int8(const Model& model, const Linear& linear) {
  return model.int8_activations && !is_float(linear.weight.type());
}

void project(const Pass& pass, const float* x, std::size_t n, std::size_t k,
             std::initializer_list<Target> targets, bool rounded) {
  const Rows in{x, k, pass.scratch.quants(), n};
  std::size_t tiles = 0;
  bool any_int8 = false;
  for (const Target& target : targets) {
    tiles += target.linear.weight.tiles();
    any_int8 = any_int8 || wants_int8(pass.model, target.linear);
  }
  if (any_int8 && !rounded) {
    for_parts(pass, n, k / kGroup, [&](std::size_t row, std::size_t begin, std::size_t end) {
      pass.model.kernels.quantize(x + row * k, k, begin, end, row, n, in.quants);
    });
  }
  const std::size_t bytes = targets.begin()->linear.weight.view().tile_bytes;
  const std::size_t piece = std::clamp<std::size_t>(kPieceBytes / bytes, 1, 8);
  const auto take = [&](std::size_t begin, std::size_t end) {
    std::size_t base = 0;  // the targets' tiles are counted on, one matrix after the other
    for (const Target& target : targets) {
      const std::size_t count = target.linear.weight.tiles();
      const std::size_t from = std::max(begin, base), to = std::min(end, base + count);
      if (from < to) compute(pass, target, in, from - base, to - base);
      base += count;
    }
  };
  pass.team.deal(pass.worker, tiles, piece, take, pass.laps);
  if (!pass.adapted.empty()) adapt(pass, x, k, {targets.begin(), targets.size()});
}

}  // namespace miudo
