// Log-probabilities of given ids, in chunks: [T, V] never exists.
#include <algorithm>
#include <numeric>
#include <string>

#include "core/engine.h"
#include "model/linear.h"
#include "util/status.h"

namespace miudo {

void Engine::score(std::span<const std::int32_t> ids, const char* adapter,
                   const miudo_scores& scores) {
  const std::lock_guard lock(mutex_);
  if (!complete_) fail(Code::kRequest, "the model has no weights yet");
  check_ids(ids, 0);
  if (scores.logprobs == nullptr || scores.argmax == nullptr) {
    fail(Code::kRequest, "there is no space for the scores");
  }
  if (scores.top_k < 0 || static_cast<std::size_t>(scores.top_k) > model_.config.vocab_size) {
    fail(Code::kRequest, "top_k is " + std::to_string(scores.top_k) + ", allowed 0 to " +
                             std::to_string(model_.config.vocab_size));
  }
  if (scores.top_k > 0 && (scores.top_ids == nullptr || scores.top_logprobs == nullptr)) {
    fail(Code::kRequest, "there is no space for the top_k");
  }
  const Adapter* const found = find_adapter(adapter);
  Conversation own;
  miudo_work work = {};
  work.ids = ids.data();
  work.n_ids = ids.size() - 1;  // nothing follows the last
  if (work.n_ids == 0) return;
  Item items[] = {{&work, &own, found}};
  try {
    reserve(items);
    std::size_t first = 0;
    while (first == 0) {
      look_for_interrupt();
      const std::size_t start = items[0].taken;
      const Pass pass = take_chunk(items, first);
      run(pass);
      score_rows(pass, ids, start, scores);
    }
  } catch (...) {
    release(items);
    throw;
  }
  release(items);
}

void Engine::score_rows(const Pass& pass, std::span<const std::int32_t> ids, std::size_t start,
                        const miudo_scores& scores) {
  const std::size_t d = model_.config.d_model, vocab = model_.config.vocab_size;
  head_out_.at_least(std::min(head_rows(), pass.n) * vocab);
  struct Space {
    std::vector<std::int32_t> order;
    std::vector<Stretch> stretches;
  };
  std::vector<Space> spaces(static_cast<std::size_t>(team_.threads()));
  for (Space& space : spaces) {
    space.stretches.resize(stretches_of(vocab));
    if (scores.top_k > 0) space.order.resize(vocab);
  }
  for (std::size_t at = 0; at < pass.n; at += head_rows()) {
    const std::size_t n = std::min(head_rows(), pass.n - at);
    team_.run([&](int worker) {
      const Pass own = pass.of(worker);
      logits(own, scratch_.streams[0].h.data() + at * d, n, head_out_.data());
      Space& space = spaces[static_cast<std::size_t>(worker)];
      share(own, n, [&](std::size_t i) {
        const std::span<const float> row(head_out_.data() + i * vocab, vocab);
        const Reading reading = read_row(model_.kernels, row, space.stretches);
        const std::size_t index = start + at + i;
        score_row(row.data(), reading, ids[index + 1], index, scores, space.order);
      });
    });
  }
}

// `order` has space for the vocabulary where a top_k is wanted.
void Engine::score_row(const float* row, const Reading& reading, std::int32_t target,
                       std::size_t at, const miudo_scores& scores,
                       std::vector<std::int32_t>& order) {
  const double total = reading.logsumexp;
  scores.logprobs[at] = static_cast<float>(static_cast<double>(row[target]) - total);
  scores.argmax[at] = static_cast<std::int32_t>(reading.best);
  if (scores.logsumexp != nullptr) scores.logsumexp[at] = static_cast<float>(total);
  if (scores.top_k == 0) return;
  const auto k = static_cast<std::size_t>(scores.top_k);
  std::iota(order.begin(), order.end(), 0);
  // Not a number sorts last: the order must be one even then.
  const auto value = [row](std::int32_t id) {
    return row[id] == row[id] ? row[id] : -std::numeric_limits<float>::infinity();
  };
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(k), order.end(),
                    [&](std::int32_t a, std::int32_t b) {
                      return value(a) > value(b) || (!(value(a) < value(b)) && a < b);
                    });
  for (std::size_t i = 0; i < k; ++i) {
    scores.top_ids[at * k + i] = order[i];
    scores.top_logprobs[at * k + i] =
        static_cast<float>(static_cast<double>(row[order[i]]) - total);
  }
}

}  // namespace miudo
