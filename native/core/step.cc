// A batch, from ids to what was wanted. Read next: model/forward.cc.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>

#include "core/engine.h"
#include "model/linear.h"
#include "util/status.h"

namespace miudo {

void Engine::step(std::span<miudo_work> works) {
  const std::lock_guard lock(mutex_);
  if (timed_) laps_.begin();
  std::vector<Item> items = check_batch(works);
  for (miudo_work& work : works) work.n_tokens = 0;
  try {
    reserve(items);
    compute(items);
  } catch (...) {
    release(items);
    throw;
  }
  for (const Item& item : items) {
    std::vector<std::int32_t>& ids = item.conversation->ids;
    ids.insert(ids.end(), item.work->ids, item.work->ids + item.kept());
    item.conversation->adapter = item.adapter;
    give_back_beyond(*item.conversation, ids.size());  // what a draft has lost
  }
}

void Engine::compute(std::span<Item> items) {
  std::size_t first = 0;  // item that the next chunk starts with
  while (first < items.size()) {
    look_for_interrupt();
    const Pass pass = take_chunk(items, first);
    run(pass);
    answer(pass, items);
    pass.end(Phase::kSampling);
  }
}

// All layers, on all workers. Throws Failure(kInterrupted) where they were stopped on the way.
void Engine::run(const Pass& pass) {
  ::miudo::reserve(pass);
  scratch_.stopped = false;
  team_.run([&](int worker) { forward(pass.of(worker)); });
  if (scratch_.stopped) fail(Code::kInterrupted, "interrupted");
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
  Laps* const laps = timed_ ? &laps_ : nullptr;
  return {model_, team_, scratch_, segments_, adapted_, stop_, n, n <= kNarrow, laps};
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
    const miudo_work& work = *items[segment_item_[i]].work;
    const std::uint32_t want = work.want;
    const bool all = (want & MIUDO_WANT_ALL_LOGITS) != 0;
    const bool last = (want & (MIUDO_WANT_SAMPLE | MIUDO_WANT_LAST_LOGITS)) != 0;
    for (std::size_t r = 0; r < seg.n; ++r) {
      const std::size_t index = seg.offset + r;
      if (all || (last && index + 1 + work.n_drafted >= seg.total)) {
        wanted.push_back({segment_item_[i], index, seg.row + r});
      }
    }
  }
  head_in_.at_least(std::min(head_rows(), wanted.size()) * d);
  head_out_.at_least(std::min(head_rows(), wanted.size()) * vocab);
  for (std::size_t at = 0; at < wanted.size(); at += head_rows()) {
    const std::size_t n = std::min(head_rows(), wanted.size() - at);
    drawn_.assign(n, nullptr);
    for (std::size_t i = 0; i < n; ++i) {
      drawn_[i] = drawn_by_weight(items[wanted[at + i].item], wanted[at + i].index);
      if (drawn_[i] != nullptr) weights_.at_least(n * vocab);
      std::memcpy(head_in_.data() + i * d, scratch_.streams[0].h.data() + wanted[at + i].row * d,
                  d * sizeof(float));
    }
    read_logits(pass, n);
    for (std::size_t i = 0; i < n; ++i) {
      answer_row(items[wanted[at + i].item], wanted[at + i].index, i);
    }
  }
}

// Logits of the n rows in head_in_, and what is read off them, every worker a part of each.
void Engine::read_logits(const Pass& pass, std::size_t n) {
  const std::size_t vocab = model_.config.vocab_size, stretches = stretches_of(vocab);
  const Kernels& kernels = model_.kernels;
  stretches_.resize(n * stretches);
  const bool any_drawn =
      std::any_of(drawn_.begin(), drawn_.end(), [](const miudo_work* work) { return work != nullptr; });
  team_.run([&](int worker) {
    const Pass own = pass.of(worker);
    logits(own, head_in_.data(), n, head_out_.data());
    for_parts(own, n, stretches, [&](std::size_t i, std::size_t begin, std::size_t end) {
      for (std::size_t s = begin; s < end; ++s) find_top(kernels, row_of(i), s, of_row(i));
    });
    for_parts(own, n, stretches, [&](std::size_t i, std::size_t begin, std::size_t end) {
      const float top = top_of(of_row(i));
      for (std::size_t s = begin; s < end; ++s) find_sum(kernels, row_of(i), s, top, of_row(i));
      for (std::size_t s = begin; s < end && any_drawn; ++s) weigh(i, s, top);
    });
  });
}

// The work that draws from the logits at `index` of its ids by their weights; null if none does.
const miudo_work* Engine::drawn_by_weight(const Item& item, std::size_t index) const {
  const miudo_work& work = *item.work;
  const bool draws = (work.want & MIUDO_WANT_SAMPLE) != 0 && index + 1 + work.n_drafted >= work.n_ids;
  return draws && draws_by_weight(work.sampling) ? &work : nullptr;
}

// Of one stretch of row i, where someone draws by weight: weights, and their mass.
void Engine::weigh(std::size_t i, std::size_t stretch, float top) {
  if (drawn_[i] == nullptr) return;
  const miudo_work& work = *drawn_[i];
  const std::size_t vocab = model_.config.vocab_size, begin = stretch * kStretch;
  const std::size_t count = std::min(kStretch, vocab - begin);
  double* weights = weights_.data() + i * vocab;
  model_.kernels.weights_of_floats(row_of(i).data() + begin, count, static_cast<double>(top),
                                   1.0 / work.sampling.temperature, weights + begin);
  for (std::size_t j = begin; work.mask != nullptr && j < begin + count; ++j) {
    if (work.mask[j] == 0) weights[j] = 0.0;
  }
  for (std::size_t j = begin; work.sampling.min_p > 0.0 && j < begin + count; ++j) {
    if (!(weights[j] >= work.sampling.min_p)) weights[j] = 0.0;
  }
  of_row(i)[stretch].mass = mass_of({weights, vocab}, stretch);
}

void Engine::answer_row(Item& item, std::size_t index, std::size_t at) {
  const std::size_t vocab = model_.config.vocab_size;
  const float* row = row_of(at).data();
  miudo_work& work = *item.work;
  const bool last = index + 1 == work.n_ids;
  if ((work.want & MIUDO_WANT_ALL_LOGITS) != 0) {
    std::memcpy(work.logits + index * vocab, row, vocab * sizeof(float));
  } else if ((work.want & MIUDO_WANT_LAST_LOGITS) != 0 && last) {
    std::memcpy(work.logits, row, vocab * sizeof(float));
  }
  const bool draws = index + 1 + work.n_drafted >= work.n_ids && !item.differed;
  if ((work.want & MIUDO_WANT_SAMPLE) == 0 || !draws) return;
  const std::vector<std::int32_t>& ids = item.conversation->ids;
  const miudo_sampling& sampling = work.sampling;
  seen_.clear();
  if (sampling.repetition_penalty < 1.0 || sampling.repetition_penalty > 1.0) {
    seen_ = ids;
    seen_.insert(seen_.end(), work.ids, work.ids + index + 1);
  }
  const std::size_t position = ids.size() + index + 1;
  const Reading reading = reading_of({row, vocab}, of_row(at));
  // The greatest logit is that of all that may be drawn.
  const bool known = takes_as_is(sampling) && std::isfinite(row[reading.best]) &&
                     (work.mask == nullptr || work.mask[reading.best] != 0);
  if (known && !(sampling.temperature > 0.0)) {
    work.token = static_cast<std::int32_t>(reading.best);
  } else if (known && drawn_[at] != nullptr) {
    work.token = draw({weights_.data() + at * vocab, vocab}, of_row(at), sampling, position);
  } else {
    work.token = sampler_.sample({row, vocab}, sampling, position, seen_, work.mask);
  }
  work.logprob = static_cast<double>(row[work.token]) - reading.logsumexp;
  if (work.tokens != nullptr) work.tokens[work.n_tokens] = work.token;
  if (work.logprobs != nullptr) work.logprobs[work.n_tokens] = work.logprob;
  ++work.n_tokens;
  item.differed = !last && work.token != work.ids[index + 1];
}

}  // namespace miudo
