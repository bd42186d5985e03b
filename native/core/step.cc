// A batch, from ids to what was wanted. Read next: model/forward.cc.
#include <algorithm>
#include <cstring>

#include "core/engine.h"

namespace miudo {

void Engine::step(std::span<miudo_work> works) {
  const std::lock_guard lock(mutex_);
  std::vector<Item> items = check_batch(works);
  try {
    reserve(items);
    compute(items);
  } catch (...) {
    release(items);
    throw;
  }
  for (const Item& item : items) {
    std::vector<std::int32_t>& ids = item.conversation->ids;
    ids.insert(ids.end(), item.work->ids, item.work->ids + item.work->n_ids);
    item.conversation->adapter = item.adapter;
  }
}

void Engine::compute(std::span<Item> items) {
  std::size_t first = 0;  // item that the next chunk starts with
  while (first < items.size()) {
    look_for_interrupt();
    const Pass pass = take_chunk(items, first);
    forward(pass);
    answer(pass, items);
  }
}

// The next at most kChunk positions, items in order.
Pass Engine::take_chunk(std::span<Item> items, std::size_t& first) {
  segments_.clear();
  segment_item_.clear();
  adapted_.clear();
  std::size_t n = 0;
  while (first < items.size() && n < kChunk) {
    Item& item = items[first];
    const miudo_work& work = *item.work;
    const std::size_t length = item.conversation->ids.size();
    Segment seg;
    seg.pages = item.conversation->pages.data();
    seg.start = length + item.taken;
    seg.row = n;
    seg.n = std::min(work.n_ids - item.taken, kChunk - n);
    seg.ids = work.ids + item.taken;
    seg.hidden = (work.want & MIUDO_WANT_HIDDEN) != 0 ? work.hidden : nullptr;
    seg.attention = (work.want & MIUDO_WANT_ATTENTION) != 0 ? work.attention : nullptr;
    seg.offset = item.taken;
    seg.total = work.n_ids;
    seg.keys = length + work.n_ids;
    segments_.push_back(seg);
    segment_item_.push_back(first);
    adapted_.add(item.adapter, seg.row, seg.n);
    n += seg.n;
    item.taken += seg.n;
    if (item.taken == work.n_ids) ++first;
  }
  return {model_, pool_, scratch_, segments_, adapted_, n};
}

// Logits of the rows that someone wants, a few at a time, each handed on as it comes.
void Engine::answer(const Pass& pass, std::span<Item> items) {
  struct Wanted {
    std::size_t item, index, row;
  };
  const std::size_t d = model_.config.d_model, vocab = model_.config.vocab_size;
  std::vector<Wanted> wanted;
  for (std::size_t i = 0; i < segments_.size(); ++i) {
    const Segment& seg = segments_[i];
    const std::uint32_t want = items[segment_item_[i]].work->want;
    const bool all = (want & MIUDO_WANT_ALL_LOGITS) != 0;
    const bool last = (want & (MIUDO_WANT_SAMPLE | MIUDO_WANT_LAST_LOGITS)) != 0;
    for (std::size_t r = 0; r < seg.n; ++r) {
      const std::size_t index = seg.offset + r;
      if (all || (last && index + 1 == seg.total)) {
        wanted.push_back({segment_item_[i], index, seg.row + r});
      }
    }
  }
  head_in_.at_least(std::min(head_rows(), wanted.size()) * d);
  head_out_.at_least(std::min(head_rows(), wanted.size()) * vocab);
  for (std::size_t at = 0; at < wanted.size(); at += head_rows()) {
    const std::size_t n = std::min(head_rows(), wanted.size() - at);
    for (std::size_t i = 0; i < n; ++i) {
      std::memcpy(head_in_.data() + i * d, scratch_.h.data() + wanted[at + i].row * d,
                  d * sizeof(float));
    }
    logits(pass, head_in_.data(), n, head_out_.data());
    for (std::size_t i = 0; i < n; ++i) {
      answer_row(items[wanted[at + i].item], wanted[at + i].index, head_out_.data() + i * vocab);
    }
  }
}

void Engine::answer_row(const Item& item, std::size_t index, const float* row) {
  const std::size_t vocab = model_.config.vocab_size;
  miudo_work& work = *item.work;
  const bool last = index + 1 == work.n_ids;
  if ((work.want & MIUDO_WANT_ALL_LOGITS) != 0) {
    std::memcpy(work.logits + index * vocab, row, vocab * sizeof(float));
  } else if ((work.want & MIUDO_WANT_LAST_LOGITS) != 0 && last) {
    std::memcpy(work.logits, row, vocab * sizeof(float));
  }
  if ((work.want & MIUDO_WANT_SAMPLE) == 0 || !last) return;
  const std::vector<std::int32_t>& ids = item.conversation->ids;
  seen_.clear();
  if (work.sampling.repetition_penalty < 1.0 || work.sampling.repetition_penalty > 1.0) {
    seen_ = ids;
    seen_.insert(seen_.end(), work.ids, work.ids + work.n_ids);
  }
  const std::size_t position = ids.size() + work.n_ids;
  work.token = sampler_.sample({row, vocab}, work.sampling, position, seen_, work.mask);
  work.logprob = static_cast<double>(row[work.token]) - model_.kernels.logsumexp(row, vocab);
}

}  // namespace miudo
