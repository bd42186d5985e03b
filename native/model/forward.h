// The forward pass: ids of a few conversations in, normed hidden states and logits out.
// The functions carry the names of miudo/decoder: forward, block, attention, feedforward, norm.
// Not for: conversations and sampling (core/engine.h). Read next: model/forward.cc.
//
// Shapes: n rows of this pass (all conversations together), D d_model, V vocab_size, H heads,
// K key-value heads, T positions of one work item, L layers.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/rounded.h"
#include "model/adapter.h"
#include "model/model.h"
#include "util/buffer.h"
#include "util/laps.h"
#include "util/stop.h"
#include "util/team.h"

namespace miudo {

// Consecutive positions of one conversation, all in this pass.
struct Segment {
  const Page* pages = nullptr;    // covers start + n positions
  std::size_t start = 0;          // position of the first row
  std::size_t row = 0, n = 0;     // rows [row, row + n) of the pass
  const std::int32_t* ids = nullptr;

  // What an onlooker wants; null where nothing is. T and keys are those of the whole item, of
  // which this segment starts at `offset`.
  float* hidden = nullptr;            // [L + 1, T, D]
  float* const* attention = nullptr;  // L times [H, T, keys]
  std::size_t offset = 0, total = 0, keys = 0;
};

// What runs through a pass beside its layers' results.
struct Stream {
  Buffer<float> x, h;                // [n, D] residual stream; normed
  Rounded rounded;                   // what the next product reads
  std::vector<Buffer<float>> turns;  // per rotation [n, (cos, sin), pairs]
};

// Space for a pass. Grows, holds nothing between passes.
struct Scratch {
  std::vector<Stream> streams;  // by worker: see Pass::narrow
  Buffer<float> q, k, v;      // [n, H head_dim], [n, K head_dim], [n, K v_head_dim]
  Buffer<float> mixed;        // [n, H v_head_dim]
  Rounded activated;            // [n, d_ff] between the feed-forward's products
  Buffer<float> gate, up;     // the same in floats, where these are wanted
  Buffer<float> panels;       // each worker's part of it
  Buffer<float> projected;    // [n, D] a sublayer's output
  Buffer<float> fed;          // [n, D] the other's, where both run side by side
  Buffer<float> latent_q;     // [n, q_rank] of latent attention, as are the next three
  Buffer<float> latent_in;    // [n, kv_rank + rope_dim]
  Buffer<float> latent;       // [n, kv_rank]
  Buffer<float> wide;         // [n, H (head_dim - rope_dim + v_head_dim)]
  Buffer<float> inner;        // [targets, n, rank] between an adapter's two products
  Buffer<float> of_worker;           // each worker's queries and scores in attention
  Buffer<std::uint8_t> expanded;     // each worker's tile of a sparse matrix, made dense
  Buffer<float> parts;               // what stretches of positions come to, by block or worker

  bool stopped = false;  // the pass ended early
};

// What one worker knows of a pass. All workers run the same functions; what a function shares out
// is done when it returns, everything else each does for itself.
// In a narrow pass every worker has a stream of its own and does all that happens to it, which takes
// less than to meet; else they share one, by rows.
struct Pass {
  const Model& model;
  Team& team;
  Scratch& scratch;
  const std::vector<Segment>& segments;
  const AdaptedRows& adapted;
  Stop& stop;
  std::size_t n;
  bool narrow = false;
  Laps* laps = nullptr;  // of worker 0, where someone wants to know
  int worker = 0;

  Pass of(int number) const {
    Pass own = *this;
    own.worker = number;
    if (number != 0) own.laps = nullptr;
    return own;
  }
  Stream& stream() const {
    return scratch.streams[narrow ? static_cast<std::size_t>(worker) : 0];
  }
  void meet() const { team.meet(laps); }
  void end(Phase phase) const {
    if (laps != nullptr) laps->end(phase);
  }
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

// Space for a pass, before any worker begins. Throws std::bad_alloc.
void reserve(const Pass& pass);

// The next are called by all workers together, as are attention, feedforward, norm and those on
// latents; the ones on a row or a head, by whoever works on it.

// Takes in all segments: writes their keys and values, leaves the final norm's output [n, D] in
// the first stream's h.
void forward(const Pass& pass);

// logits [rows, V] of hidden [rows, D] (normed); rows <= pass.n.
void logits(const Pass& pass, const float* hidden, std::size_t rows, float* out);

// The pieces of forward, in files of their own. h is the stream's, out shared; both [n, D].
void attention(const Pass& pass, std::size_t layer, const float* h, float* out);
void feedforward(const Pass& pass, std::size_t layer, const float* h, float* out);

// Leaves a layer's queries, keys and values in scratch.q, k and v.
void latent_queries_keys_values(const Pass& pass, std::size_t layer, const float* h);

// Norms the stream's x [n, D] into its h and returns that, or x where the model has no such norm.
const float* norm(const Pass& pass, const NormWeights& weights);
// One row of any width in the model's kind of norm; out may be x.
void norm_row(const Model& model, const NormWeights& weights, std::size_t width, const float* x,
              float* out);

// Cosines and sines of a row's position, for every rotation of the model.
void find_turns(const Pass& pass, std::size_t row, std::size_t position);
// Rotates the first numbers of x, half-split (Su et al. 2021), as the layer does.
void rotate(const Pass& pass, std::size_t layer, std::size_t row, float* x);
// ALiBi (Press et al. 2022): the first of n scores is `past` positions before the query's own.
void add_distances(float slope, std::size_t past, float* scores, std::size_t n);

}  // namespace miudo
