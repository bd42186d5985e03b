// The forward pass: ids of a few conversations in, normed hidden states and logits out.
// The functions carry the names of miudo/decoder: forward, attention, feedforward, norm.
// Not for: conversations and sampling (core/engine.h). Read next: model/forward.cc.
//
// Shapes: n rows of this pass (all conversations together), D d_model, V vocab_size, H heads,
// K key-value heads, T positions of one work item, L layers.
#pragma once

#include <cstdint>
#include <vector>

#include "model/adapter.h"
#include "model/model.h"
#include "util/buffer.h"
#include "util/thread_pool.h"

namespace miudo {

// Consecutive positions of one conversation, all in this pass.
struct Segment {
  float* const* pages = nullptr;  // covers start + n positions
  std::size_t start = 0;          // position of the first row
  std::size_t row = 0, n = 0;     // rows [row, row + n) of the pass
  const std::int32_t* ids = nullptr;

  // What an onlooker wants; null where nothing is. T and keys are those of the whole item, of
  // which this segment starts at `offset`.
  float* hidden = nullptr;            // [L + 1, T, D]
  float* const* attention = nullptr;  // L times [H, T, keys]
  std::size_t offset = 0, total = 0, keys = 0;
};

// Space for a pass. Grows, holds nothing between passes.
struct Scratch {
  Buffer<float> x, h;         // [n, D] residual stream; normed
  Buffer<float> q, k, v;      // [n, H head_dim], [n, K head_dim], [n, K v_head_dim]
  Buffer<float> mixed;        // [n, H v_head_dim]
  Buffer<float> gate, up;     // [n, d_ff]
  Buffer<float> projected;    // [n, D]
  Buffer<float> inner;        // [targets, n, rank] between an adapter's two products
  Buffer<std::int8_t> quants;  // [n, widest input]
  Buffer<float> scales;
  std::vector<Buffer<float>> turns;      // per rotation [n, head_dim / 2, (cos, sin)]
  std::vector<Buffer<float>> of_worker;  // queries, outputs and scores of attention
  std::vector<std::size_t> first_task;   // of each segment, in attention
};

struct Pass {
  const Model& model;
  ThreadPool& pool;
  Scratch& scratch;
  const std::vector<Segment>& segments;
  const AdaptedRows& adapted;
  std::size_t n;
};

// The segment that row belongs to.
inline const Segment& segment_of(const Pass& pass, std::size_t row) {
  std::size_t low = 0, high = pass.segments.size();
  while (high - low > 1) {
    const std::size_t middle = (low + high) / 2;
    (pass.segments[middle].row <= row ? low : high) = middle;
  }
  return pass.segments[low];
}

// Takes in all segments: writes their keys and values, leaves the final norm's output [n, D] in
// scratch.h. Throws std::bad_alloc before anything is computed.
void forward(const Pass& pass);

// logits [rows, V] of hidden [rows, D] (normed).
void logits(const Pass& pass, const float* hidden, std::size_t rows, float* out);

// The pieces of forward, in files of their own.
void attention(const Pass& pass, std::size_t layer);
void feedforward(const Pass& pass, std::size_t layer);
void norm(const Pass& pass, const NormWeights& weights, const float* x, float* out);

}  // namespace miudo
