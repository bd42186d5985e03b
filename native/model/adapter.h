// Low-rank corrections (Hu et al. 2022) that run beside the matrices and are never merged into
// them: out += up (down x), in float32 whatever the matrix is stored in, x unrounded.
// For: conversations of one batch that each have an adapter of their own, or none.
// Not for: who uses which (core/engine.h). Read next: model/adapter.cc.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "model/weights.h"

namespace miudo {

struct Pass;
struct Target;

constexpr std::size_t kMaxRank = 4096;
// Rows that one task corrects: whole blocks of the kernel.
constexpr std::size_t kStripRows = 24;

// What the door is given for one matrix [out, in]; the numbers behind the pointers are copied.
struct LowRankSource {
  std::size_t rank = 0;
  std::span<const float> down, up;  // [rank, in], [out, rank]
  float scale = 1.0f;
};

struct LowRank {
  PackedMatrix down, up;  // the scale is multiplied into `up`
};

class Adapter {
 public:
  Adapter(std::string name, const Weights& weights)
      : name_(std::move(name)), weights_(weights), parts_(weights.block_matrices()) {}

  // Throws Failure(kModelFile) for a matrix that is none of the blocks' or was given before, for
  // sizes that are not the matrix's, and for numbers that are not finite.
  void set(const std::string& matrix, const LowRankSource& source);

  const std::string& name() const { return name_; }
  std::size_t widest() const { return widest_; }  // the highest rank
  // Null where the matrix in this slot is not corrected.
  const LowRank* part(std::size_t slot) const {
    return slot < parts_.size() && parts_[slot].down.rows() != 0 ? &parts_[slot] : nullptr;
  }

 private:
  std::string name_;
  const Weights& weights_;
  std::vector<LowRank> parts_;  // by Linear::slot
  std::size_t widest_ = 0;
};

// Consecutive rows of a pass that share an adapter.
struct Strip {
  const Adapter* adapter;
  std::size_t row, n;
};

class AdaptedRows {
 public:
  void clear();
  // Rows [row, row + n) use `adapter`; rows come in ascending order. Null is no adapter.
  void add(const Adapter* adapter, std::size_t row, std::size_t n);

  bool empty() const { return strips_.empty(); }
  const std::vector<Strip>& strips() const { return strips_; }
  std::size_t widest() const { return widest_; }

 private:
  std::vector<Strip> strips_;  // at most kStripRows each
  std::size_t widest_ = 0;
};

// Adds to every target's out what the adapters of the rows x [n, k] say. Rows without one keep
// their bits.
void adapt(const Pass& pass, const float* x, std::size_t k, std::span<const Target> targets);

}  // namespace miudo
