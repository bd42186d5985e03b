// A decode loop on the C door alone: what a program without Python calls.
#include <algorithm>

#include "core/miudo.h"

namespace {

struct Loop {
  miudo_engine* engine;
  const int32_t* eos_ids;
  size_t n_eos;
  int (*on_token)(int32_t token, void* context);
  void* context;
  int32_t* tokens;
  size_t* n_tokens;
};

miudo_status run(const Loop& loop, miudo_work work, size_t max_tokens, miudo_error* error) {
  while (*loop.n_tokens < max_tokens) {
    const miudo_status status = miudo_step(loop.engine, &work, 1, error);
    if (status != MIUDO_OK) return status;
    const int32_t token = work.token;
    loop.tokens[(*loop.n_tokens)++] = token;
    const bool stop = loop.on_token != nullptr && loop.on_token(token, loop.context) != 0;
    const int32_t* end = loop.eos_ids + loop.n_eos;
    if (stop || std::find(loop.eos_ids, end, token) != end) break;
    work.ids = &loop.tokens[*loop.n_tokens - 1];
    work.n_ids = 1;
  }
  return MIUDO_OK;
}

}  // namespace

miudo_status miudo_generate(miudo_engine* engine, const int32_t* prompt, size_t n_prompt,
                            const char* adapter, const miudo_sampling* sampling,
                            const int32_t* eos_ids, size_t n_eos, size_t max_tokens,
                            int (*on_token)(int32_t token, void* context), void* context,
                            int32_t* tokens, size_t* n_tokens, miudo_error* error) {
  int64_t conversation = 0;
  if (n_tokens != nullptr) *n_tokens = 0;
  // Goes through the door's own checks: a NULL engine, prompt or conversation is an error there.
  const miudo_status opened = miudo_open(engine, &conversation, error);
  if (opened != MIUDO_OK) return opened;
  miudo_status status = MIUDO_REQUEST;
  if (sampling != nullptr && tokens != nullptr && n_tokens != nullptr &&
      (eos_ids != nullptr || n_eos == 0)) {
    miudo_work work = {};
    work.conversation = conversation;
    work.ids = prompt;
    work.n_ids = n_prompt;
    work.want = MIUDO_WANT_SAMPLE;
    work.sampling = *sampling;
    work.adapter = adapter;
    const Loop loop{engine, eos_ids, n_eos, on_token, context, tokens, n_tokens};
    status = run(loop, work, max_tokens, error);
  } else if (error != nullptr) {
    *error = {MIUDO_REQUEST, "sampling, eos_ids, tokens or n_tokens is missing"};
  }
  miudo_close(engine, conversation, nullptr);
  return status;
}
