#include "model/linear.h"

namespace miudo {
namespace {

bool wants_int8(const Pass& pass, const Target& target) {
  return pass.model.int8_activations && target.linear.weight.packing() == Packing::kQ8;
}

void compute(const Pass& pass, const Target& target, Rows in, std::size_t begin,
             std::size_t end) {
  const PackedMatrix& weight = target.linear.weight;
  const Matmul matmul = matmul_for(pass.model.kernels, weight.packing(), wants_int8(pass, target));
  matmul(weight.view(), target.linear.bias.data(), in, target.out, weight.rows(), begin, end);
}

}  // namespace

Matmul matmul_for(const Kernels& kernels, Packing packing, bool int8) {
  switch (packing) {
    case Packing::kF32: return kernels.matmul_f32;
    case Packing::kQ8: return int8 ? kernels.matmul_q8_int8 : kernels.matmul_q8_float;
    case Packing::kRows: return kernels.matmul_rows;
  }
  return kernels.matmul_rows;
}

namespace {

std::size_t task_count(const Pass& pass, std::size_t tiles, std::size_t n, std::size_t k) {
  const auto threads = static_cast<std::size_t>(pass.pool.size());
  if (tiles * kTileRows * n * k < kWorthSharing) return 1;
  // One long run of tiles a thread streams best; many positions need evening out instead.
  return std::min(tiles, n < 8 ? threads : 4 * threads);
}

}  // namespace

void project(const Pass& pass, const float* x, std::size_t n, std::size_t k,
             std::initializer_list<Target> targets) {
  Scratch& s = pass.scratch;
  Rows in{x, k, s.quants.data(), s.scales.data(), n};
  std::size_t tiles = 0;
  bool any_int8 = false;
  for (const Target& target : targets) {
    tiles += target.linear.weight.tiles();
    any_int8 = any_int8 || wants_int8(pass, target);
  }
  if (any_int8) {
    for_rows(pass, n, [&](std::size_t row) {
      pass.model.kernels.quantize(x + row * k, k, s.quants.data() + row * k,
                                  s.scales.data() + row * (k / kGroup));
    });
  }
  const std::size_t tasks = task_count(pass, tiles, n, k);
  pass.pool.run(tasks, [&](std::size_t task, int) {
    const std::size_t begin = tiles * task / tasks, end = tiles * (task + 1) / tasks;
    std::size_t base = 0;  // the targets' tiles are counted on, one matrix after the other
    for (const Target& target : targets) {
      const std::size_t count = target.linear.weight.tiles();
      const std::size_t from = std::max(begin, base), to = std::min(end, base + count);
      if (from < to) compute(pass, target, in, from - base, to - base);
      base += count;
    }
  });
  if (!pass.adapted.empty()) adapt(pass, x, k, {targets.begin(), targets.size()});
}

}  // namespace miudo
