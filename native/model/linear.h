// How the pieces of a pass are spread over the workers of its team: rows, parts of rows, and
// matrix products by tiles of 16 output rows. Every worker calls these, and returns from project,
// share, for_rows and for_parts when all are done. rows_of and for_own_rows are about the stream that
// a worker works on: of a narrow pass that is its own, and nobody waits.
// Read next: model/linear.cc.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "model/forward.h"

namespace miudo {

// Targets of one call: q, k and v.
constexpr std::size_t kMostTargets = 3;

// Of tiles that a worker takes at a time: about a microsecond of reading.
constexpr std::size_t kDealtBytes = 32 * 1024;

// Groups of 32 columns of the feed-forward's inner width that a worker makes at a time for n rows, at
// most, and the floats that this takes, of gate and up.
constexpr std::size_t panel_groups(std::size_t n) {
  return std::clamp<std::size_t>(512 / std::max<std::size_t>(n, 1), 1, 4);
}
constexpr std::size_t panels_size(std::size_t n) { return 2 * n * panel_groups(n) * kGroup; }

// Whether rows are rounded to int8 for this matrix.
bool wants_int8(const Model& model, const Linear& linear);

struct Target {
  const Linear& linear;
  float* out;  // [n, rows of its weight]
};

// n rows x [n, k] as products take them; with `int8` in their rounded form too, which lasts until the
// next call.
Rows rows_of(const Pass& pass, const float* x, std::size_t n, std::size_t k, bool int8);

// The tiles [begin, end) of one product, on the calling worker alone, the first's rows at out.
void multiply(const Pass& pass, const Linear& linear, const Rows& in, float* out,
              std::size_t stride, std::size_t begin, std::size_t end);

// Every target's out = weight x + bias, and what the rows' adapters add. The matrices are equally
// wide.
void project(const Pass& pass, const Rows& in, std::initializer_list<Target> targets);
// The same for x [n, k] as it is.
void project(const Pass& pass, const float* x, std::size_t n, std::size_t k,
             std::initializer_list<Target> targets);

// Calls work(task) for this worker's part of [0, tasks): every so manieth, as costs grow evenly.
template <typename Work>
void share(const Pass& pass, std::size_t tasks, const Work& work) {
  const auto workers = static_cast<std::size_t>(pass.team.size());
  for (auto task = static_cast<std::size_t>(pass.worker); task < tasks; task += workers) work(task);
  pass.meet();
}

// Calls work(row) for rows [0, n): eight neighbours at a time where there are enough.
template <typename Work>
void for_rows(const Pass& pass, std::size_t n, const Work& work) {
  const auto workers = static_cast<std::size_t>(pass.team.size());
  const std::size_t rows = n >= kBlockRows * workers ? kBlockRows : 1;
  share(pass, (n + rows - 1) / rows, [&](std::size_t task) {
    const std::size_t end = std::min(n, (task + 1) * rows);
    for (std::size_t row = task * rows; row < end; ++row) work(row);
  });
}

// Calls work(row) for rows [0, n) of the stream that this worker works on.
template <typename Work>
void for_own_rows(const Pass& pass, std::size_t n, const Work& work) {
  if (!pass.narrow) return for_rows(pass, n, work);
  for (std::size_t row = 0; row < n; ++row) work(row);
}

// Calls work(row, begin, end) for rows [0, n) of `parts` parts each: blocks of eight rows where
// there are enough, else every worker's own parts of all rows.
template <typename Work>
void for_parts(const Pass& pass, std::size_t n, std::size_t parts, const Work& work) {
  const auto workers = static_cast<std::size_t>(pass.team.size());
  const auto own = static_cast<std::size_t>(pass.worker);
  if (n >= kBlockRows * workers) {
    share(pass, (n + kBlockRows - 1) / kBlockRows, [&](std::size_t task) {
      const std::size_t end = std::min(n, (task + 1) * kBlockRows);
      for (std::size_t row = task * kBlockRows; row < end; ++row) work(row, 0, parts);
    });
    return;
  }
  const std::size_t begin = parts * own / workers, end = parts * (own + 1) / workers;
  for (std::size_t row = 0; begin < end && row < n; ++row) work(row, begin, end);
  pass.meet();
}

}  // namespace miudo
