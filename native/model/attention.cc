#include <algorithm>
#include <cmath>
#include <cstring>

#include "model/forward.h"
#include "model/linear.h"

namespace miudo {
namespace {

constexpr std::size_t kBlock = 4;  // query rows that share a load of keys and values

// Norms and rotates a row's queries or keys [heads, head_dim] in place.
void norm_and_rotate(const Pass& pass, std::size_t layer, std::size_t row,
                     const NormWeights& weights, std::size_t heads, float* x) {
  const Model& m = pass.model;
  const std::size_t dim = m.config.layers[layer].head_dim;
  if (m.config.qk_norm == QkNorm::kFull) norm_row(m, weights, heads * dim, x, x);
  for (std::size_t head = 0; head < heads; ++head, x += dim) {
    if (m.config.qk_norm == QkNorm::kHead) norm_row(m, weights, dim, x, x);
    rotate(pass, layer, row, x);
  }
}

// Writes a row's keys and values to its page.
void remember(const Pass& pass, std::size_t layer, std::size_t row) {
  const Model& m = pass.model;
  const LayerConfig& c = m.config.layers[layer];
  const Scratch& s = pass.scratch;
  const Segment& seg = segment_of(pass, row);
  const std::size_t position = seg.start + row - seg.row;
  const std::size_t slot = position % kTilePositions;
  float* page = seg.pages[position / kTilePositions];
  const std::size_t value_stride = m.layout.value_stride(layer);
  for (std::size_t head = 0; head < c.n_kv_heads; ++head) {
    const float* k = s.k.data() + (row * c.n_kv_heads + head) * c.head_dim;
    float* keys = page + m.layout.keys(layer, head) + slot;
    for (std::size_t d = 0; d < c.head_dim; ++d) keys[d * kTilePositions] = k[d];
    std::memcpy(page + m.layout.values(layer, head) + slot * value_stride,
                s.v.data() + (row * c.n_kv_heads + head) * c.v_head_dim,
                c.v_head_dim * sizeof(float));
  }
}

// Up to four rows of one key-value head: row r is position r / group and query head r % group
// of that head.
struct Block {
  std::size_t head, first, count;
};

// Keys that a query at `position` sees: [begin, end).
struct Reach {
  std::size_t begin, end;
};

Reach reach_of(const LayerConfig& c, std::size_t position) {
  const std::size_t end = position + 1;
  return {c.window != 0 && end > c.window ? end - c.window : 0, end};
}

class Attending {
 public:
  Attending(const Pass& pass, std::size_t layer, const Segment& seg, const Block& block,
            Buffer<float>& space)
      : pass_(pass), layer_(layer), c_(pass.model.config.layers[layer]), seg_(seg), block_(block) {
    for (std::size_t i = 0; i < block.count; ++i) {
      reach_[i] = reach_of(c_, seg.start + position(i));
    }
    first_tile_ = reach_[0].begin / kTilePositions;
    end_tile_ = pages_for(reach_[block.count - 1].end);
    size_ = (end_tile_ - first_tile_) * kTilePositions;
    stride_ = pass.model.layout.value_stride(layer);
    q_ = space.data();
    out_ = q_ + kBlock * c_.head_dim;
    p_ = out_ + kBlock * stride_;
  }

  void run() {
    load_queries();
    const Kernels& kernels = pass_.model.kernels;
    for (std::size_t tile = first_tile_; tile < end_tile_; ++tile) {
      const float* keys = seg_.pages[tile] + pass_.model.layout.keys(layer_, block_.head);
      kernels.scores(q_, c_.head_dim, block_.count, c_.head_dim, keys, p_ + offset(tile), size_);
    }
    const std::size_t base = first_tile_ * kTilePositions;
    float inverse[kBlock];
    for (std::size_t i = 0; i < block_.count; ++i) {
      bend(i);
      const float sum = kernels.softmax(p_ + i * size_, reach_[i].begin - base,
                                        reach_[i].end - base, size_);
      inverse[i] = 1.0f / sum;
    }
    std::memset(out_, 0, block_.count * stride_ * sizeof(float));
    for (std::size_t tile = first_tile_; tile < end_tile_; ++tile) weigh(tile);
    for (std::size_t i = 0; i < block_.count; ++i) {
      float* to = pass_.scratch.mixed.data() +
                  ((seg_.row + position(i)) * c_.n_heads + query_head(i)) * c_.v_head_dim;
      for (std::size_t d = 0; d < c_.v_head_dim; ++d) to[d] = out_[i * stride_ + d] * inverse[i];
      if (seg_.attention != nullptr) show(i, inverse[i]);
    }
  }

 private:
  std::size_t position(std::size_t i) const { return (block_.first + i) / c_.group(); }
  std::size_t query_head(std::size_t i) const {
    return block_.head * c_.group() + (block_.first + i) % c_.group();
  }
  std::size_t offset(std::size_t tile) const { return (tile - first_tile_) * kTilePositions; }

  void load_queries() {
    const float given = pass_.model.config.attn_scale;
    const float scale =
        given > 0.0f ? given : 1.0f / std::sqrt(static_cast<float>(c_.head_dim));
    for (std::size_t i = 0; i < block_.count; ++i) {
      const float* from = pass_.scratch.q.data() +
                          ((seg_.row + position(i)) * c_.n_heads + query_head(i)) * c_.head_dim;
      for (std::size_t d = 0; d < c_.head_dim; ++d) q_[i * c_.head_dim + d] = from[d] * scale;
    }
  }

  // Softcap and ALiBi, on the scores that are visible.
  void bend(std::size_t i) {
    const std::size_t n = reach_[i].end - reach_[i].begin;
    float* scores = p_ + i * size_ + reach_[i].begin - first_tile_ * kTilePositions;
    const float cap = pass_.model.config.attn_softcap;
    if (cap > 0.0f) pass_.model.kernels.softcap(scores, cap, n);
    if (!c_.slopes.empty()) add_distances(c_.slopes[query_head(i)], scores, n);
  }

  // Only visible values are read: what lies beyond may be another conversation's, or not finite.
  void weigh(std::size_t tile) {
    const float* values = seg_.pages[tile] + pass_.model.layout.values(layer_, block_.head);
    const std::size_t start = tile * kTilePositions;
    Reach part[kBlock];
    bool alike = true;
    for (std::size_t i = 0; i < block_.count; ++i) {
      part[i].end = std::clamp(reach_[i].end, start, start + kTilePositions) - start;
      part[i].begin = std::clamp(reach_[i].begin, start, start + part[i].end) - start;
      alike = alike && part[i].begin == part[0].begin && part[i].end == part[0].end;
    }
    const std::size_t calls = alike ? 1 : block_.count;
    for (std::size_t i = 0; i < calls; ++i) {
      pass_.model.kernels.weigh(p_ + i * size_ + offset(tile), size_, alike ? block_.count : 1,
                                values, stride_, part[i].begin, part[i].end, out_ + i * stride_,
                                stride_);
    }
  }

  void show(std::size_t i, float inverse) const {
    float* row = seg_.attention[layer_] +
                 (query_head(i) * seg_.total + seg_.offset + position(i)) * seg_.keys;
    std::memset(row, 0, seg_.keys * sizeof(float));
    const std::size_t base = first_tile_ * kTilePositions;
    for (std::size_t j = reach_[i].begin; j < reach_[i].end; ++j) {
      row[j] = p_[i * size_ + j - base] * inverse;
    }
  }

  const Pass& pass_;
  std::size_t layer_;
  const LayerConfig& c_;
  const Segment& seg_;
  const Block& block_;
  Reach reach_[kBlock] = {};
  std::size_t first_tile_, end_tile_, size_, stride_;
  float *q_, *out_, *p_;
};

// All blocks of all segments, numbered on.
void attend(const Pass& pass, std::size_t layer) {
  const LayerConfig& c = pass.model.config.layers[layer];
  const auto worker = static_cast<std::size_t>(pass.worker);
  const auto workers = static_cast<std::size_t>(pass.team.size());
  std::size_t number = 0;
  for (const Segment& seg : pass.segments) {
    const std::size_t rows = seg.n * c.group(), blocks = (rows + kBlock - 1) / kBlock;
    for (std::size_t task = 0; task < blocks * c.n_kv_heads; ++task, ++number) {
      if (number % workers != worker) continue;
      const std::size_t first = task % blocks * kBlock;
      const Block block{task / blocks, first, std::min(kBlock, rows - first)};
      Attending(pass, layer, seg, block, pass.scratch.of_worker[worker]).run();
    }
  }
  pass.meet();
}

}  // namespace

void queries_keys_values(const Pass& pass, std::size_t layer, const float* h) {
  const LayerConfig& c = pass.model.config.layers[layer];
  const Layer& w = pass.model.weights.layers[layer];
  Scratch& s = pass.scratch;
  project(pass, h, pass.n, pass.model.config.d_model,
          {{w.q, s.q.data()}, {w.k, s.k.data()}, {w.v, s.v.data()}});
  for_rows(pass, pass.n, [&](std::size_t row) {
    float* q = s.q.data() + row * c.n_heads * c.head_dim;
    float* k = s.k.data() + row * c.n_kv_heads * c.head_dim;
    norm_and_rotate(pass, layer, row, w.q_norm, c.n_heads, q);
    norm_and_rotate(pass, layer, row, w.k_norm, c.n_kv_heads, k);
  });
}

// out = o(softmax(bent(q k * scale)) v).
void attention(const Pass& pass, std::size_t layer, const float* h, float* out) {
  const Model& m = pass.model;
  const LayerConfig& c = m.config.layers[layer];
  const Scratch& s = pass.scratch;
  if (m.config.has_latent()) {
    latent_queries_keys_values(pass, layer, h);
  } else {
    queries_keys_values(pass, layer, h);
  }
  for_rows(pass, pass.n, [&](std::size_t row) { remember(pass, layer, row); });
  pass.end(Phase::kQkv);
  attend(pass, layer);
  pass.end(Phase::kAttention);
  project(pass, s.mixed.data(), pass.n, c.n_heads * c.v_head_dim,
          {{m.weights.layers[layer].o, out}});
  pass.end(Phase::kOutput);
}

}  // namespace miudo
