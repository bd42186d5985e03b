// What the head reads from any layer's state: final norm and logits of given rows.
// Not for: the ordinary path, which norms its last rows on the way (model/forward.cc).
// Read next: core/step.cc.
#include <algorithm>
#include <cstring>
#include <span>

#include "core/engine.h"
#include "util/status.h"

namespace miudo {

void Engine::unembed(std::span<const float> hidden, std::span<float> out) {
  const std::lock_guard lock(mutex_);
  if (!complete_) fail(Code::kRequest, "the model has no weights yet");
  const std::size_t d = model_.config.d_model, vocab = model_.config.vocab_size;
  const NormWeights& last = model_.weights.norm;
  const std::size_t rows = hidden.size() / d;
  segments_.clear();
  adapted_.clear();  // no adapter is of the head
  head_in_.at_least(std::min(head_rows(), rows) * d);
  for (std::size_t at = 0; at < rows; at += head_rows()) {
    look_for_interrupt();
    const std::size_t n = std::min(head_rows(), rows - at);
    const Pass pass{model_, team_, scratch_, segments_, adapted_, stop_, n, n <= kNarrow};
    ::miudo::reserve(pass);
    for (std::size_t i = 0; i < n; ++i) {
      const float* x = hidden.data() + (at + i) * d;
      float* h = head_in_.data() + i * d;
      if (last.weight.empty()) {
        std::memcpy(h, x, d * sizeof(float));
      } else {
        norm_row(model_, last, d, x, h);
      }
    }
    team_.run([&](int worker) {
      logits(pass.of(worker), head_in_.data(), n, out.data() + at * vocab);
    });
  }
}

}  // namespace miudo
