#include "model/attention.h"

#include "model/linear.h"

namespace miudo {
namespace {

// A head's queries or key, in place.
void norm_and_rotate(const Pass& pass, std::size_t layer, std::size_t row,
                     const NormWeights& weights, float* x) {
  const Model& m = pass.model;
  const std::size_t dim = m.config.layers[layer].head_dim;
  if (m.config.qk_norm == QkNorm::kHead) norm_row(m, weights, dim, x, x);
  rotate(pass, layer, row, x);
}

// Rounds a row's key and value of one head into their page.
void remember(const Pass& pass, std::size_t layer, std::size_t row, std::size_t head) {
  const Model& m = pass.model;
  const LayerConfig& c = m.config.layers[layer];
  const Segment& seg = segment_of(pass, row);
  const std::size_t position = seg.start + row - seg.row, slot = position % kTilePositions;
  const Page* page = seg.pages + position / kTilePositions;
  const Tiles keys = m.layout.keys(layer, head, page, 1);
  const Tiles values = m.layout.values(layer, head, page, 1);
  const CacheKernels& kernels = m.cache_kernels();
  const std::size_t at = row * c.n_kv_heads + head;
  kernels.keep_key(pass.scratch.k.data() + at * c.head_dim, c.head_dim, slot,
                   *page + keys.numbers, *page + keys.scales);
  kernels.keep_value(pass.scratch.v.data() + at * c.v_head_dim, c.v_head_dim,
                     m.layout.value_stride(layer), slot, *page + values.numbers,
                     *page + values.scales);
}

void norm_whole_rows(const Pass& pass, std::size_t layer) {
  const Model& m = pass.model;
  const LayerConfig& c = m.config.layers[layer];
  const Layer& w = m.weights.layers[layer];
  const std::size_t queries = c.n_heads * c.head_dim, keys = c.n_kv_heads * c.head_dim;
  for_rows(pass, pass.n, [&](std::size_t row) {
    float *q = pass.scratch.q.data() + row * queries, *k = pass.scratch.k.data() + row * keys;
    norm_row(m, w.q_norm, queries, q, q);
    norm_row(m, w.k_norm, keys, k, k);
  });
}

}  // namespace

void rotate_and_keep(const Pass& pass, std::size_t layer, std::size_t row, std::size_t head) {
  const Model& m = pass.model;
  if (!m.config.has_latent()) {
    const LayerConfig& c = m.config.layers[layer];
    const Layer& w = m.weights.layers[layer];
    const std::size_t at = row * c.n_kv_heads + head;
    float* q = pass.scratch.q.data() + at * c.group() * c.head_dim;
    for (std::size_t i = 0; i < c.group(); ++i, q += c.head_dim) {
      norm_and_rotate(pass, layer, row, w.q_norm, q);
    }
    norm_and_rotate(pass, layer, row, w.k_norm, pass.scratch.k.data() + at * c.head_dim);
  }
  remember(pass, layer, row, head);
}

// out = o(softmax(bent(q k * scale)) v).
void attention(const Pass& pass, std::size_t layer, const float* h, float* out) {
  const Model& m = pass.model;
  const LayerConfig& c = m.config.layers[layer];
  const Layer& w = m.weights.layers[layer];
  const Scratch& s = pass.scratch;
  if (m.config.has_latent()) {
    latent_queries_keys_values(pass, layer, h);
  } else {
    project(pass, h, pass.n, m.config.d_model,
            {{w.q, pass.scratch.q.data()},
             {w.k, pass.scratch.k.data()},
             {w.v, pass.scratch.v.data()}});
    if (m.config.qk_norm == QkNorm::kFull) norm_whole_rows(pass, layer);
  }
  const AttentionPlan plan = plan_attention(pass, c);
  const bool taken_in = plan.split || !plan.lone;
  if (taken_in) {
    for_rows(pass, pass.n, [&](std::size_t row) {
      for (std::size_t head = 0; head < c.n_kv_heads; ++head) rotate_and_keep(pass, layer, row, head);
    });
  }
  pass.end(Phase::kQkv);
  attend(pass, layer, plan, taken_in);
  pass.end(Phase::kAttention);
  project(pass, s.mixed.data(), pass.n, c.n_heads * c.v_head_dim, {{w.o, out}});
  pass.end(Phase::kOutput);
}

}  // namespace miudo
