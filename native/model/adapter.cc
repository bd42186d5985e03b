#include "model/adapter.h"

#include <algorithm>
#include <cmath>

#include "model/linear.h"
#include "util/status.h"

namespace miudo {
namespace {

void check_size(const std::string& what, std::span<const float> values, std::size_t wanted) {
  if (values.size() != wanted) {
    fail(Code::kModelFile, what + " has " + std::to_string(values.size()) +
                               " numbers, rank and matrix want " + std::to_string(wanted));
  }
}

void check_finite(const std::string& what, std::span<const float> values) {
  for (const float x : values) {
    if (!std::isfinite(x)) fail(Code::kModelFile, what + " holds NaN or infinity");
  }
}

PackedMatrix packed(std::span<const float> values, std::size_t rows, std::size_t cols) {
  return {DType::kF32, rows, cols, reinterpret_cast<const std::uint8_t*>(values.data())};
}

// out += up (down x) for one strip: both products have the kernels' fixed order of sums, so an
// output's bits do not depend on the rows beside it.
void correct(const Pass& pass, const Strip& strip, const LowRank& part, const float* x,
             std::size_t k, float* inner, float* out, std::size_t out_stride) {
  const Kernels& kernels = pass.model.kernels;
  const std::size_t rank = part.down.rows();
  const Rows in{x + strip.row * k, k, {}, strip.n};
  kernels.matmul_float[0](part.down.view(), nullptr, in, inner, rank, 0, part.down.tiles());
  const Rows low{inner, rank, {}, strip.n};
  kernels.matmul_f32_add(part.up.view(), nullptr, low, out + strip.row * out_stride, out_stride,
                         0, part.up.tiles());
}

}  // namespace

void Adapter::set(const std::string& matrix, const LowRankSource& source) {
  const Linear* linear = weights_.block_matrix(matrix);
  if (linear == nullptr) {
    fail(Code::kModelFile, matrix + " is no matrix of this model's blocks");
  }
  if (part(linear->slot) != nullptr) fail(Code::kModelFile, matrix + " was given twice");
  const std::size_t rank = source.rank;
  if (rank < 1 || rank > kMaxRank) {
    fail(Code::kModelFile, matrix + ": rank is " + std::to_string(rank) + ", allowed 1 to " +
                               std::to_string(kMaxRank));
  }
  const std::size_t rows = linear->weight.rows(), cols = linear->weight.cols();
  check_size(matrix + ": down", source.down, rank * cols);
  check_size(matrix + ": up", source.up, rows * rank);  // before a number is read
  std::vector<float> up(source.up.begin(), source.up.end());
  for (float& x : up) x *= source.scale;
  check_finite(matrix + ": down", source.down);
  check_finite(matrix + ": scale times up", up);
  parts_[linear->slot] = {packed(source.down, rank, cols), packed(up, rows, rank)};
  widest_ = std::max(widest_, rank);
}

void AdaptedRows::clear() {
  strips_.clear();
  widest_ = 0;
}

void AdaptedRows::add(const Adapter* adapter, std::size_t row, std::size_t n) {
  if (adapter == nullptr) return;
  widest_ = std::max(widest_, adapter->widest());
  while (n > 0) {
    const bool goes_on = !strips_.empty() && strips_.back().adapter == adapter &&
                         strips_.back().row + strips_.back().n == row &&
                         strips_.back().n < kStripRows;
    if (!goes_on) strips_.push_back({adapter, row, 0});
    const std::size_t taken = std::min(n, kStripRows - strips_.back().n);
    strips_.back().n += taken;
    row += taken;
    n -= taken;
  }
}

void adapt(const Pass& pass, const float* x, std::size_t k, std::span<const Target> targets) {
  const std::vector<Strip>& strips = pass.adapted.strips();
  const bool any = std::any_of(strips.begin(), strips.end(), [&](const Strip& strip) {
    return std::any_of(targets.begin(), targets.end(), [&](const Target& target) {
      return strip.adapter->part(target.linear.slot) != nullptr;
    });
  });
  if (!any) return;  // nobody waits for the head, or for matrices left as they are
  share(pass, strips.size() * targets.size(), [&](std::size_t task) {
    const Strip& strip = strips[task / targets.size()];
    const std::size_t which = task % targets.size();
    const Target& target = targets[which];
    const LowRank* part = strip.adapter->part(target.linear.slot);
    if (part == nullptr) return;
    float* inner = pass.scratch.inner.data() + (which * pass.n + strip.row) * pass.adapted.widest();
    correct(pass, strip, *part, x, k, inner, target.out, target.linear.weight.rows());
  });
}

}  // namespace miudo
