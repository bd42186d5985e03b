// Scores, softmax and the mix of values, block by block and stretch by stretch.
// A row's numbers are the same whatever shares its block, whatever chunk it came in and whichever
// thread did which stretch: stretches are cut by absolute position and summed in order.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "model/attention.h"
#include "model/linear.h"

namespace miudo {
namespace {

// Row r of a segment and head is position r / group and query head r % group of that head.
struct Block {
  const Segment& seg;
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

std::size_t blocks_of(const LayerConfig& c, const Segment& seg) {
  return (seg.n * c.group() + kQueryRows - 1) / kQueryRows;
}

std::size_t room_for(std::size_t stretches) { return round_up(stretches, kTilePositions); }

class Attending {
 public:
  Attending(const Pass& pass, std::size_t layer, const AttentionPlan& plan, const Block& block,
            float* parts, float* space)
      : pass_(pass),
        layer_(layer),
        c_(pass.model.config.layers[layer]),
        block_(block),
        stride_(pass.model.layout.value_stride(layer)),
        room_(room_for(plan.stretches)) {
    for (std::size_t i = 0; i < block.count; ++i) {
      reach_[i] = reach_of(c_, block.seg.start + position(i));
    }
    tops_ = parts;
    sums_ = tops_ + kQueryRows * room_;
    outs_ = sums_ + kQueryRows * room_;
    q_ = space;
    p_ = q_ + kQueryRows * c_.head_dim;
  }

  std::size_t first_stretch() const { return reach_[0].begin / kSpan; }
  std::size_t end_stretch() const { return (reach_[block_.count - 1].end - 1) / kSpan + 1; }

  void load_queries() {
    const float given = pass_.model.config.attn_scale;
    const float scale =
        given > 0.0f ? given : 1.0f / std::sqrt(static_cast<float>(c_.head_dim));
    for (std::size_t i = 0; i < block_.count; ++i) {
      const float* from = pass_.scratch.q.data() + row_of(i) * c_.head_dim;
      for (std::size_t d = 0; d < c_.head_dim; ++d) q_[d * block_.count + i] = from[d] * scale;
    }
  }

  // What the positions of one stretch come to by themselves, for rows that see any of them.
  void attend(std::size_t stretch) {
    const Kernels& kernels = pass_.model.kernels;
    const CacheKernels& cache = pass_.model.cache_kernels();
    const std::size_t start = std::max(reach_[0].begin, stretch * kSpan) / kTilePositions;
    const std::size_t end = std::min(reach_[block_.count - 1].end, (stretch + 1) * kSpan);
    const std::size_t tiles = pages_for(end) - start;
    const Page* pages = block_.seg.pages + start;
    const CacheLayout& layout = pass_.model.layout;
    const Tiles keys = layout.keys(layer_, block_.head, pages, tiles);
    cache.scores({q_, block_.count, c_.head_dim}, keys, p_);
    for (std::size_t i = 0; i < block_.count; ++i) {
      const Reach part = part_of(i, start, tiles);
      if (part.begin == part.end) continue;
      bend(i, part, start);
      const Part sum = kernels.softmax(p_ + i * kScoreStride, part.begin, part.end,
                                       tiles * kTilePositions);
      tops_[i * room_ + index(stretch)] = sum.top;
      sums_[i * room_ + index(stretch)] = sum.sum;
      if (block_.seg.attention != nullptr) show(i, part, start);
    }
    float* out = outs_ + index(stretch) * kQueryRows * stride_;
    std::memset(out, 0, block_.count * stride_ * sizeof(float));
    weigh(start, layout.values(layer_, block_.head, pages, tiles), out);
  }

  // The stretches of each row in order: their softmaxes brought to one greatest score.
  void finish() {
    const Kernels& kernels = pass_.model.kernels;
    for (std::size_t i = 0; i < block_.count; ++i) {
      const std::size_t begin = index(reach_[i].begin / kSpan);
      const std::size_t end = index((reach_[i].end - 1) / kSpan) + 1;
      float *factors = tops_ + i * room_, *out = outs_ + i * stride_;
      kernels.softmax(factors, begin, end, room_);
      float total = 0.0f;
      float* sum = p_;  // free by now
      std::memset(sum, 0, stride_ * sizeof(float));
      for (std::size_t s = begin; s < end; ++s) {
        total += factors[s] * sums_[i * room_ + s];
        kernels.add(sum, out + s * kQueryRows * stride_, factors[s], stride_);
      }
      const float inverse = 1.0f / total;
      float* to = pass_.scratch.mixed.data() + row_of(i) * c_.v_head_dim;
      for (std::size_t d = 0; d < c_.v_head_dim; ++d) to[d] = sum[d] * inverse;
      if (block_.seg.attention != nullptr) finish_shown(i, factors, inverse);
    }
  }

 private:
  std::size_t position(std::size_t i) const { return (block_.first + i) / c_.group(); }
  std::size_t query_head(std::size_t i) const {
    return block_.head * c_.group() + (block_.first + i) % c_.group();
  }
  std::size_t row_of(std::size_t i) const {
    return (block_.seg.row + position(i)) * c_.n_heads + query_head(i);
  }
  std::size_t index(std::size_t stretch) const { return stretch - first_stretch(); }

  // What row i sees of `tiles` tiles from tile `start` on, counted from there.
  Reach part_of(std::size_t i, std::size_t start, std::size_t tiles) const {
    const std::size_t from = start * kTilePositions, to = from + tiles * kTilePositions;
    const std::size_t end = std::clamp(reach_[i].end, from, to) - from;
    return {std::min(std::max(reach_[i].begin, from) - from, end), end};
  }

  // Softcap and ALiBi, on the scores that are visible.
  void bend(std::size_t i, const Reach& part, std::size_t start) {
    float* scores = p_ + i * kScoreStride + part.begin;
    const std::size_t n = part.end - part.begin;
    const float cap = pass_.model.config.attn_softcap;
    if (cap > 0.0f) pass_.model.kernels.softcap(scores, cap, n);
    if (c_.slopes.empty()) return;
    const std::size_t past = reach_[i].end - 1 - (start * kTilePositions + part.begin);
    add_distances(c_.slopes[query_head(i)], past, scores, n);
  }

  // Only visible values are read: what lies beyond may be another conversation's, or not finite.
  // Reaches grow with the row, so the rows that see a position are neighbours.
  void weigh(std::size_t start, const Tiles& values, float* out) {
    Reach part[kQueryRows];
    for (std::size_t i = 0; i < block_.count; ++i) part[i] = part_of(i, start, values.count);
    const std::size_t positions = values.count * kTilePositions;
    std::size_t at = part[0].begin;
    for (std::size_t first = 0, last = 0; first < block_.count;) {
      while (last < block_.count && part[last].begin <= at) ++last;
      while (first < last && part[first].end <= at) ++first;
      const std::size_t next = last < block_.count ? part[last].begin : positions;
      if (first == last) {
        at = next;
        if (last == block_.count) return;
        continue;
      }
      const std::size_t end = std::min(next, part[first].end);
      pass_.model.cache_kernels().weigh(p_ + first * kScoreStride, last - first, values, stride_,
                                        at, end, out + first * stride_);
      at = end;
    }
  }

  float* shown(std::size_t i) const {
    const Segment& seg = block_.seg;
    return seg.attention[layer_] +
           (query_head(i) * seg.total + seg.offset + position(i)) * seg.keys;
  }

  void show(std::size_t i, const Reach& part, std::size_t start) const {
    std::memcpy(shown(i) + start * kTilePositions + part.begin, p_ + i * kScoreStride + part.begin,
                (part.end - part.begin) * sizeof(float));
  }

  void finish_shown(std::size_t i, const float* factors, float inverse) const {
    float* row = shown(i);
    std::memset(row, 0, reach_[i].begin * sizeof(float));
    std::memset(row + reach_[i].end, 0, (block_.seg.keys - reach_[i].end) * sizeof(float));
    for (std::size_t j = reach_[i].begin; j < reach_[i].end; ++j) {
      row[j] *= factors[index(j / kSpan)] * inverse;
    }
  }

  const Pass& pass_;
  std::size_t layer_;
  const LayerConfig& c_;
  const Block& block_;
  Reach reach_[kQueryRows] = {};
  std::size_t stride_, room_;
  float *tops_, *sums_;  // [kQueryRows, room] by stretch from the block's first one on
  float* outs_;          // [stretches, kQueryRows, stride]
  float *q_, *p_;        // [head_dim, count], [kQueryRows, kScoreStride]
};

// Of all segments' blocks, numbered on. Where they are many, they are lone as a rule.
Block block_at(const Pass& pass, const LayerConfig& c, const AttentionPlan& plan,
               std::size_t number) {
  const Segment* seg = pass.segments.data();
  if (plan.lone) {
    seg += number / c.n_kv_heads;
    number %= c.n_kv_heads;
  }
  while (number >= blocks_of(c, *seg) * c.n_kv_heads) {
    number -= blocks_of(c, *seg) * c.n_kv_heads;
    ++seg;
  }
  const std::size_t blocks = blocks_of(c, *seg), first = number % blocks * kQueryRows;
  return {*seg, number / blocks, first, std::min(kQueryRows, seg->n * c.group() - first)};
}

}  // namespace

AttentionPlan plan_attention(const Pass& pass, const LayerConfig& c) {
  AttentionPlan plan;
  plan.lone = true;
  for (const Segment& seg : pass.segments) {
    plan.blocks += blocks_of(c, seg) * c.n_kv_heads;
    plan.lone = plan.lone && blocks_of(c, seg) == 1;
    plan.stretches = std::max(plan.stretches, (seg.start + seg.n + kSpan - 1) / kSpan);
  }
  // Where whole blocks leave a fifth of the workers idle or more. Then they are few.
  const auto workers = static_cast<std::size_t>(pass.team.size());
  const std::size_t rounds = (plan.blocks + workers - 1) / workers;
  plan.split = plan.stretches > 1 && 5 * plan.blocks < 4 * rounds * workers;
  return plan;
}

std::size_t parts_size(const Pass& pass, std::size_t layer, const AttentionPlan& plan) {
  const std::size_t outs = plan.stretches * pass.model.layout.value_stride(layer);
  return round_up(kQueryRows * (2 * room_for(plan.stretches) + outs), kCacheLine);
}

std::size_t worker_size(const LayerConfig& c) {
  const std::size_t scores = std::max(kScoreStride, c.v_head_dim + kValueMultiple);
  return round_up(kQueryRows * (c.head_dim + scores), kCacheLine);
}

void attend(const Pass& pass, std::size_t layer, const AttentionPlan& plan, bool taken_in) {
  const LayerConfig& c = pass.model.config.layers[layer];
  const auto own = static_cast<std::size_t>(pass.worker);
  const auto workers = static_cast<std::size_t>(pass.team.size());
  const std::size_t parts = parts_size(pass, layer, plan);
  float* space = pass.scratch.of_worker.data() + own * worker_size(c);
  const auto attending = [&](const Block& block, std::size_t place) {
    return Attending(pass, layer, plan, block, pass.scratch.parts.data() + place * parts, space);
  };
  if (!plan.split) {
    const auto take = [&](std::size_t number, std::size_t) {  // one at a time
      const Block block = block_at(pass, c, plan, number);
      for (std::size_t row = 0; !taken_in && row < block.seg.n; ++row) {
        rotate_and_keep(pass, layer, block.seg.row + row, block.head);
      }
      Attending a = attending(block, own);
      a.load_queries();
      for (std::size_t i = a.first_stretch(); i < a.end_stretch(); ++i) a.attend(i);
      a.finish();
    };
    pass.team.deal(pass.worker, plan.blocks, 1, take, pass.laps);
    return;
  }
  for (std::size_t number = 0; number < plan.blocks; ++number) {
    const Block block = block_at(pass, c, plan, number);
    Attending a = attending(block, number);
    bool loaded = false;
    for (std::size_t i = a.first_stretch(); i < a.end_stretch(); ++i) {
      if ((number * plan.stretches + i) % workers != own) continue;
      if (!loaded) a.load_queries();
      loaded = true;
      a.attend(i);
    }
  }
  pass.meet();
  share(pass, plan.blocks, [&](std::size_t number) {
    const Block block = block_at(pass, c, plan, number);
    attending(block, number).finish();
  });
}

}  // namespace miudo
