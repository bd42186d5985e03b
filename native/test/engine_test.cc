// The C door: a small model made, run, scored, generated from and misused, without Python.
#include <algorithm>

#include "test/tiny_engine.h"

namespace {

using namespace miudo::test;

TEST(steps_one_by_one_have_the_bits_of_a_whole_prompt) {
  const std::vector<std::int32_t> ids = some_ids(80);
  std::vector<float> first;
  for (const int threads : {1, 2, 3}) {
    const EnginePtr e = make_engine(threads);
    std::int64_t whole = 0, single = 0;
    CHECK(miudo_open(e.get(), &whole, nullptr) == MIUDO_OK);
    CHECK(miudo_open(e.get(), &single, nullptr) == MIUDO_OK);
    const std::vector<float> logits = all_logits(e.get(), whole, ids);
    if (first.empty()) first = logits;
    CHECK(logits == first);
    bool same = true;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const std::vector<float> one = all_logits(e.get(), single, {ids[i]});
      same = same && std::memcmp(one.data(), logits.data() + i * kVocab, kVocab * 4) == 0;
    }
    CHECK(same);
    std::size_t length = 0;
    CHECK(miudo_length(e.get(), single, &length, nullptr) == MIUDO_OK && length == 80);
    CHECK(miudo_truncate(e.get(), single, 33, nullptr) == MIUDO_OK);
    CHECK(all_logits(e.get(), single, {ids[33]}) ==
          std::vector<float>(logits.begin() + 33 * kVocab, logits.begin() + 34 * kVocab));
    CHECK(miudo_close(e.get(), whole, nullptr) == MIUDO_OK);
    CHECK(miudo_close(e.get(), whole, nullptr) == MIUDO_REQUEST);
  }
}

TEST(hidden_and_attention_fill_their_arrays) {
  const EnginePtr e = make_engine(2);
  const std::vector<std::int32_t> ids = some_ids(40);
  std::int64_t k = 0;
  CHECK(miudo_open(e.get(), &k, nullptr) == MIUDO_OK);
  std::vector<float> hidden(3 * 40 * kModel), rows0(4 * 40 * 40), rows1(4 * 40 * 40);
  float* const attention[] = {rows0.data(), rows1.data()};
  miudo_work work = work_for(k, ids, MIUDO_WANT_HIDDEN | MIUDO_WANT_ATTENTION);
  work.hidden = hidden.data();
  work.attention = attention;
  work.n_keys = 41;
  CHECK(miudo_step(e.get(), &work, 1, nullptr) == MIUDO_REQUEST);
  work.n_keys = 40;
  CHECK(miudo_step(e.get(), &work, 1, nullptr) == MIUDO_OK);
  for (std::size_t row = 0; row < 160; ++row) {
    float sum = 0.0f;
    for (std::size_t j = 0; j < 40; ++j) sum += rows1[row * 40 + j];
    CHECK(std::abs(sum - 1.0f) < 1e-5f);
    if (row % 40 >= 9) CHECK(rows1[row * 40 + row % 40 - 9] <= 0.0f);  // outside the window
  }
}

TEST(the_last_layer_s_states_give_the_step_s_logits) {
  const std::vector<std::int32_t> ids = some_ids(40);
  for (const int threads : {1, 3}) {
    const EnginePtr e = make_engine(threads);
    std::int64_t k = 0;
    CHECK(miudo_open(e.get(), &k, nullptr) == MIUDO_OK);
    std::vector<float> hidden(3 * 40 * kModel), logits(40 * kVocab), again(40 * kVocab);
    miudo_work work = work_for(k, ids, MIUDO_WANT_HIDDEN | MIUDO_WANT_ALL_LOGITS);
    work.hidden = hidden.data();
    work.logits = logits.data();
    CHECK(miudo_step(e.get(), &work, 1, nullptr) == MIUDO_OK);
    const float* last = hidden.data() + 2 * 40 * kModel;
    CHECK(miudo_unembed(e.get(), last, 40, again.data(), nullptr) == MIUDO_OK);
    CHECK(again == logits);
    CHECK(miudo_unembed(e.get(), last, 1, again.data(), nullptr) == MIUDO_OK);  // a narrow pass
    CHECK(again == logits);
    CHECK(miudo_unembed(e.get(), last, std::size_t(-1), again.data(), nullptr) == MIUDO_REQUEST);
    CHECK(miudo_unembed(e.get(), nullptr, 1, again.data(), nullptr) == MIUDO_REQUEST);
    CHECK(miudo_unembed(e.get(), nullptr, 0, nullptr, nullptr) == MIUDO_OK);
  }
}

TEST(scores_are_log_probabilities) {
  const EnginePtr e = make_engine(2);
  const std::vector<std::int32_t> ids = some_ids(100);
  std::vector<float> logprobs(99), total(99), top(99 * 3);
  std::vector<std::int32_t> argmax(99), top_ids(99 * 3);
  miudo_scores scores = {logprobs.data(), argmax.data(), total.data(), 3, top_ids.data(), top.data()};
  CHECK(miudo_score(e.get(), ids.data(), ids.size(), nullptr, &scores, nullptr) == MIUDO_OK);
  for (std::size_t i = 0; i < 99; ++i) {
    CHECK(logprobs[i] <= 0.0f && std::isfinite(total[i]));
    CHECK(top_ids[3 * i] == argmax[i] && top[3 * i] >= top[3 * i + 1]);
  }
  CHECK(miudo_cache_bytes_used(e.get()) == 0);
  scores.top_k = kVocab + 1;
  CHECK(miudo_score(e.get(), ids.data(), ids.size(), nullptr, &scores, nullptr) == MIUDO_REQUEST);
  CHECK(miudo_score(e.get(), ids.data(), 1, nullptr, &scores, nullptr) == MIUDO_REQUEST);
  scores.top_k = 0;
  CHECK(miudo_score(e.get(), ids.data(), 1, nullptr, &scores, nullptr) == MIUDO_OK);
  CHECK(miudo_score(e.get(), nullptr, 0, nullptr, &scores, nullptr) == MIUDO_REQUEST);
}

int stop_at_five(std::int32_t, void* context) { return ++*static_cast<int*>(context) >= 5; }

TEST(generation_without_python) {
  const EnginePtr e = make_engine(1);
  const std::vector<std::int32_t> prompt = {1, 2, 3};
  std::vector<std::int32_t> tokens(20), again(20);
  std::size_t n = 0, m = 0;
  const auto run = [&](const miudo_sampling* s, std::vector<std::int32_t> eos, std::size_t most,
                       int (*on)(std::int32_t, void*), void* context) {
    return miudo_generate(e.get(), prompt.data(), 3, nullptr, s, eos.data(), eos.size(), most, on,
                          context, tokens.data(), &n, nullptr);
  };
  CHECK(run(&kGreedy, {}, 20, nullptr, nullptr) == MIUDO_OK && n == 20);
  again = tokens;
  m = n;
  CHECK(run(&kGreedy, {}, 20, nullptr, nullptr) == MIUDO_OK && n == m && tokens == again);
  const std::int32_t third = tokens[2];
  CHECK(run(&kGreedy, {third}, 20, nullptr, nullptr) == MIUDO_OK && n <= 3);
  CHECK(tokens[n - 1] == third);
  int calls = 0;
  CHECK(run(&kGreedy, {}, 20, stop_at_five, &calls) == MIUDO_OK && n == 5);
  CHECK(run(nullptr, {}, 20, nullptr, nullptr) == MIUDO_REQUEST);
  CHECK(miudo_cache_bytes_used(e.get()) == 0);
}

int always(void*) { return 1; }

TEST(misuse_is_a_status) {
  CHECK(miudo_create(nullptr, nullptr, nullptr, nullptr) == MIUDO_REQUEST);
  miudo_config c = config();
  miudo_options options = {1, 1, MIUDO_CACHE_F16, 1 << 20, always, nullptr};
  miudo_engine* raw = nullptr;
  c.d_model = 0;
  CHECK(miudo_create(&c, &options, &raw, nullptr) == MIUDO_MODEL_FILE && raw == nullptr);
  c = config();
  options.cache_bytes = 10;
  CHECK(miudo_create(&c, &options, &raw, nullptr) == MIUDO_RESOURCE && raw == nullptr);
  miudo_destroy(nullptr);

  const EnginePtr e = make_engine(1, 2 * 32 * 2 * 2 * (6 + 8) * 4);  // two pages
  std::int64_t k = 0;
  CHECK(miudo_open(e.get(), &k, nullptr) == MIUDO_OK);
  const std::vector<std::int32_t> good = some_ids(3), bad = {1, kVocab}, none;
  const auto step = [&](miudo_work work) { return miudo_step(e.get(), &work, 1, nullptr); };
  CHECK(step(work_for(k, bad, MIUDO_WANT_SAMPLE)) == MIUDO_REQUEST);
  CHECK(step(work_for(k, none, MIUDO_WANT_SAMPLE)) == MIUDO_REQUEST);
  CHECK(step(work_for(k + 1, good, MIUDO_WANT_SAMPLE)) == MIUDO_REQUEST);
  CHECK(step(work_for(k, good, MIUDO_WANT_ALL_LOGITS)) == MIUDO_REQUEST);
  CHECK(step(work_for(k, good, 1u << 20)) == MIUDO_REQUEST);
  CHECK(step(work_for(k, some_ids(65), 0)) == MIUDO_REQUEST);   // three pages
  CHECK(step(work_for(k, some_ids(101), 0)) == MIUDO_REQUEST);  // positions
  miudo_work wrong = work_for(k, good, MIUDO_WANT_SAMPLE);
  wrong.sampling.temperature = std::nan("");
  CHECK(step(wrong) == MIUDO_REQUEST);
  miudo_work twice[] = {work_for(k, good, 0), work_for(k, good, 0)};
  CHECK(miudo_step(e.get(), twice, 2, nullptr) == MIUDO_REQUEST);
  CHECK(miudo_step(e.get(), nullptr, 0, nullptr) == MIUDO_OK);
  std::size_t length = 1;
  CHECK(miudo_length(e.get(), k, &length, nullptr) == MIUDO_OK && length == 0);
  CHECK(step(work_for(k, some_ids(64), MIUDO_WANT_SAMPLE)) == MIUDO_OK);
}

TEST(a_fork_shares_pages_until_it_is_written) {
  const EnginePtr e = make_engine(2);
  const std::uint64_t page = miudo_page_bytes(e.get());
  // In float16; values of 5 numbers have room for 16: whole vectors.
  CHECK(page == 32 * 2 * 2 * (6 + 16) * 2 && miudo_page_positions() == 32);
  const std::vector<std::int32_t> ids = some_ids(80);
  std::int64_t whole = 0, fork = 0, other = 0;
  CHECK(miudo_open(e.get(), &whole, nullptr) == MIUDO_OK);
  const std::vector<float> logits = all_logits(e.get(), whole, ids);
  CHECK(miudo_fork(e.get(), whole, 81, &fork, nullptr) == MIUDO_REQUEST);
  CHECK(miudo_fork(e.get(), whole + 1, 0, &fork, nullptr) == MIUDO_REQUEST);
  CHECK(miudo_fork(e.get(), whole, 40, nullptr, nullptr) == MIUDO_REQUEST);
  CHECK(miudo_fork(e.get(), whole, 40, &fork, nullptr) == MIUDO_OK);
  CHECK(miudo_fork(e.get(), fork, 40, &other, nullptr) == MIUDO_OK);
  CHECK(miudo_cache_bytes_used(e.get()) == 3 * page);
  const std::vector<std::int32_t> rest(ids.begin() + 40, ids.end());
  const std::vector<float> right(logits.begin() + 40 * kVocab, logits.end());
  CHECK(all_logits(e.get(), fork, {1, 2, 3}) != std::vector<float>(3 * kVocab));
  CHECK(miudo_cache_bytes_used(e.get()) == 4 * page);  // its own second page
  CHECK(all_logits(e.get(), other, rest) == right);
  CHECK(miudo_truncate(e.get(), whole, 40, nullptr) == MIUDO_OK);
  CHECK(all_logits(e.get(), whole, rest) == right);
  CHECK(miudo_close(e.get(), whole, nullptr) == MIUDO_OK);
  CHECK(miudo_close(e.get(), other, nullptr) == MIUDO_OK);
  CHECK(miudo_cache_bytes_used(e.get()) == 2 * page);
  CHECK(miudo_close(e.get(), fork, nullptr) == MIUDO_OK);
  CHECK(miudo_cache_bytes_used(e.get()) == 0);
}

TEST(a_budget_counts_the_copies) {
  const EnginePtr e = make_engine(1, 2 * 32 * 2 * 2 * (6 + 8) * 4);  // two pages
  std::int64_t first = 0, second = 0, third = 0;
  CHECK(miudo_open(e.get(), &first, nullptr) == MIUDO_OK);
  const std::vector<std::int32_t> ids = some_ids(20), one = {1};
  std::vector<miudo_work> works = {work_for(first, ids, 0)};
  CHECK(miudo_step(e.get(), works.data(), 1, nullptr) == MIUDO_OK);
  CHECK(miudo_fork(e.get(), first, 20, &second, nullptr) == MIUDO_OK);
  CHECK(miudo_fork(e.get(), first, 5, &third, nullptr) == MIUDO_OK);
  works = {work_for(first, one, 0), work_for(second, one, 0), work_for(third, one, 0)};
  CHECK(miudo_step(e.get(), works.data(), 3, nullptr) == MIUDO_REQUEST);  // three pages in all
  CHECK(miudo_close(e.get(), third, nullptr) == MIUDO_OK);
  CHECK(miudo_step(e.get(), works.data(), 2, nullptr) == MIUDO_OK);
}

TEST(a_draft_is_kept_while_it_is_what_would_be_drawn) {
  const EnginePtr e = make_engine(2);
  std::vector<std::int32_t> ids = some_ids(30), tokens(12);
  miudo_sampling sampling = kGreedy;
  sampling.temperature = 0.8;
  sampling.repetition_penalty = 1.2;
  std::size_t n = 0;
  CHECK(miudo_generate(e.get(), ids.data(), ids.size(), nullptr, &sampling, nullptr, 0, 12, nullptr,
                       nullptr, tokens.data(), &n, nullptr) == MIUDO_OK);
  for (const std::size_t wrong : {0u, 1u, 5u, 11u, 12u}) {  // 12: none is
    std::vector<std::int32_t> given = ids, drawn(13);
    given.insert(given.end(), tokens.begin(), tokens.end());
    if (wrong < 12) given[30 + wrong] = given[30 + wrong] == 0 ? 1 : 0;
    std::vector<double> logprobs(13);
    std::int64_t k = 0;
    CHECK(miudo_open(e.get(), &k, nullptr) == MIUDO_OK);
    miudo_work work = work_for(k, given, MIUDO_WANT_SAMPLE);
    work.sampling = sampling;
    work.n_drafted = 12;
    CHECK(miudo_step(e.get(), &work, 1, nullptr) == MIUDO_REQUEST);  // no space
    work.tokens = drawn.data();
    work.logprobs = logprobs.data();
    work.n_drafted = 42;
    CHECK(miudo_step(e.get(), &work, 1, nullptr) == MIUDO_REQUEST);
    work.n_drafted = 12;
    CHECK(miudo_step(e.get(), &work, 1, nullptr) == MIUDO_OK);
    CHECK(work.n_tokens == wrong + 1 && work.token == drawn[wrong]);
    CHECK(std::equal(drawn.begin(), drawn.begin() + std::min<std::ptrdiff_t>(static_cast<std::ptrdiff_t>(work.n_tokens), 12),
                     tokens.begin()));
    std::size_t length = 0;
    CHECK(miudo_length(e.get(), k, &length, nullptr) == MIUDO_OK && length == 30 + wrong);
    CHECK(miudo_close(e.get(), k, nullptr) == MIUDO_OK);
  }
  CHECK(miudo_cache_bytes_used(e.get()) == 0);
}

int at_second_look(void* looks) { return ++*static_cast<int*>(looks) == 2; }

TEST(an_interrupted_step_is_undone) {
  int looks = 0;
  const EnginePtr e = make_engine(1, 1 << 24, at_second_look, &looks);
  std::vector<std::vector<std::int32_t>> ids(4, some_ids(90));  // 360 positions: two chunks
  std::vector<miudo_work> works;
  for (const std::vector<std::int32_t>& mine : ids) {
    std::int64_t k = 0;
    CHECK(miudo_open(e.get(), &k, nullptr) == MIUDO_OK);
    works.push_back(work_for(k, mine, MIUDO_WANT_SAMPLE));
  }
  CHECK(miudo_step(e.get(), works.data(), works.size(), nullptr) == MIUDO_INTERRUPTED);
  CHECK(looks == 2 && miudo_cache_bytes_used(e.get()) == 0);
  for (const miudo_work& work : works) {
    std::size_t length = 1;
    CHECK(miudo_length(e.get(), work.conversation, &length, nullptr) == MIUDO_OK && length == 0);
  }
  CHECK(miudo_step(e.get(), works.data(), works.size(), nullptr) == MIUDO_OK);
  CHECK(works[0].token == works[3].token);
}

TEST(an_engine_without_weights_opens_nothing) {
  const miudo_config c = config();
  const miudo_options options = {1, 1, MIUDO_CACHE_F16, 1 << 24, nullptr, nullptr};
  miudo_engine* raw = nullptr;
  CHECK(miudo_create(&c, &options, &raw, nullptr) == MIUDO_OK);
  const EnginePtr e(raw);
  std::int64_t k = 0;
  CHECK(miudo_open(raw, &k, nullptr) == MIUDO_REQUEST);
}

TEST(a_linear_alone_checks_its_sizes) {
  const std::vector<float> w(6, 1.0f), x(3, 2.0f);
  float out[2] = {};
  CHECK(miudo_linear(MIUDO_F32, 2, 3, w.data(), 24, x.data(), 1, 0, out, nullptr) == MIUDO_OK);
  CHECK(std::abs(out[0] - 6.0f) < 1e-6f && std::abs(out[1] - 6.0f) < 1e-6f);
  CHECK(miudo_linear(MIUDO_F32, 2, 3, w.data(), 23, x.data(), 1, 0, out, nullptr) != MIUDO_OK);
  CHECK(miudo_linear(MIUDO_Q8_0, 2, 3, w.data(), 24, x.data(), 1, 0, out, nullptr) != MIUDO_OK);
  CHECK(miudo_linear(MIUDO_F32, -2, 3, w.data(), 24, x.data(), 1, 0, out, nullptr) != MIUDO_OK);
  CHECK(miudo_linear(MIUDO_Q8_0, 2, 3, w.data(), 0, x.data(), 1, 0, out, nullptr) != MIUDO_OK);
}

TEST(a_sampler_alone_checks_its_ids) {
  const float logits[] = {0.0f, 3.0f, 1.0f};
  const std::int32_t seen[] = {5};
  std::int32_t token = -1;
  CHECK(miudo_sample(logits, 3, &kGreedy, 0, nullptr, 0, nullptr, &token, nullptr) == MIUDO_OK);
  CHECK(token == 1);
  CHECK(miudo_sample(logits, 3, &kGreedy, 0, seen, 1, nullptr, &token, nullptr) == MIUDO_REQUEST);
  CHECK(miudo_sample(logits, 0, &kGreedy, 0, nullptr, 0, nullptr, &token, nullptr) != MIUDO_OK);
}

}  // namespace
