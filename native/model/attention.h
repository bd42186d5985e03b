// How attention is cut up: what model/attention.cc and model/attend.cc tell each other.
// Not for: other files, which see model/forward.h. Read next: model/attend.cc.
#pragma once

#include "model/forward.h"

namespace miudo {

// A layer's work: one block is up to kQueryRows query rows of one key-value head.
struct AttentionPlan {
  std::size_t blocks = 0;
  std::size_t stretches = 0;  // of kSpan positions in the longest conversation
  bool split = false;         // a block's stretches go to several workers
  bool lone = false;          // no head has two blocks
};

AttentionPlan plan_attention(const Pass& pass, const LayerConfig& layer);

// Floats for the parts of one block, and for one worker's queries and scores.
std::size_t parts_size(const Pass& pass, std::size_t layer, const AttentionPlan& plan);
std::size_t worker_size(const LayerConfig& layer);

// Norms and rotates a row's queries of one key-value head and its key, which goes to its page
// with the value.
void rotate_and_keep(const Pass& pass, std::size_t layer, std::size_t row, std::size_t head);

// Leaves softmax(bent(q k * scale)) v in scratch.mixed. `taken_in` says whether rotate_and_keep has been
// called; it may only be left to attend where the plan's blocks are `lone` and not `split`.
void attend(const Pass& pass, std::size_t layer, const AttentionPlan& plan, bool taken_in);

}  // namespace miudo
