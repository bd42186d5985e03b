// Adapters through the C door: side by side in one batch, bound to conversations, refused.
#include "test/tiny_engine.h"

namespace {

using namespace miudo::test;

// Noise for some matrices, and the parts that point into it.
struct LoraNoise {
  std::vector<std::vector<float>> numbers;
  std::vector<std::string> names;
  std::vector<miudo_low_rank> parts;

  void add(const std::string& name, std::size_t out, std::size_t in, std::size_t rank,
           Noise& noise) {
    names.push_back(name);
    numbers.push_back(noise.floats(rank * in));
    numbers.push_back(noise.floats(out * rank));
    const std::vector<float>& down = numbers[numbers.size() - 2];
    parts.push_back({nullptr, static_cast<std::int64_t>(rank), down.data(), down.size(),
                     numbers.back().data(), numbers.back().size(), 0.5f});
  }
  std::vector<miudo_low_rank> given() {
    for (std::size_t i = 0; i < parts.size(); ++i) parts[i].matrix = names[i].c_str();
    return parts;
  }
};

LoraNoise lora(std::uint64_t seed, std::size_t rank) {
  Noise noise(seed);
  LoraNoise made;
  made.add("layers.0.attn.q.weight", 24, kModel, rank, noise);
  made.add("layers.0.attn.v.weight", 10, kModel, rank + 1, noise);
  made.add("layers.1.attn.o.weight", kModel, 20, rank, noise);
  made.add("layers.1.mlp.down.weight", kModel, kFeed, rank, noise);
  return made;
}

miudo_status give(miudo_engine* e, const char* name, LoraNoise made) {
  const std::vector<miudo_low_rank> parts = made.given();
  return miudo_add_adapter(e, name, parts.data(), parts.size(), nullptr);
}

std::int64_t opened(miudo_engine* e) {
  std::int64_t k = 0;
  CHECK(miudo_open(e, &k, nullptr) == MIUDO_OK);
  return k;
}

std::vector<float> adapted_logits(miudo_engine* e, std::int64_t k, const char* adapter,
                                  const std::vector<std::int32_t>& ids) {
  std::vector<float> logits(ids.size() * kVocab);
  miudo_work work = work_for(k, ids, MIUDO_WANT_ALL_LOGITS);
  work.logits = logits.data();
  work.adapter = adapter;
  CHECK(miudo_step(e, &work, 1, nullptr) == MIUDO_OK);
  return logits;
}

TEST(each_of_a_batch_has_its_adapter_and_its_own_bits) {
  const std::vector<std::int32_t> ids = some_ids(70);
  std::vector<std::vector<float>> first;
  for (const int threads : {1, 3}) {
    const EnginePtr e = make_engine(threads);
    CHECK(give(e.get(), "a", lora(1, 3)) == MIUDO_OK);
    CHECK(give(e.get(), "b", lora(2, 17)) == MIUDO_OK);
    const char* const names[] = {nullptr, "b", "a", nullptr, "b", "a"};
    std::vector<std::vector<float>> alone;
    for (const char* name : {"", "a", "b"}) {
      alone.push_back(adapted_logits(e.get(), opened(e.get()), *name ? name : nullptr, ids));
    }
    if (first.empty()) first = alone;
    CHECK(alone == first && alone[0] != alone[1] && alone[1] != alone[2]);
    std::vector<std::vector<float>> together(6, std::vector<float>(ids.size() * kVocab));
    std::vector<miudo_work> works;
    for (std::size_t i = 0; i < 6; ++i) {
      works.push_back(work_for(opened(e.get()), ids, MIUDO_WANT_ALL_LOGITS));
      works.back().logits = together[i].data();
      works.back().adapter = names[i];
    }
    CHECK(miudo_step(e.get(), works.data(), works.size(), nullptr) == MIUDO_OK);
    for (std::size_t i = 0; i < 6; ++i) {
      CHECK(together[i] == alone[names[i] == nullptr ? 0 : *names[i] == 'a' ? 1 : 2]);
    }
  }
}

TEST(a_scale_of_zero_changes_nothing) {
  const EnginePtr e = make_engine(1);
  const std::vector<std::int32_t> ids = {5, 9};
  const std::vector<float> plain = all_logits(e.get(), opened(e.get()), ids);
  LoraNoise zero = lora(4, 2);
  for (miudo_low_rank& part : zero.parts) part.scale = 0.0f;
  CHECK(give(e.get(), "zero", std::move(zero)) == MIUDO_OK);
  CHECK(adapted_logits(e.get(), opened(e.get()), "zero", ids) == plain);
  CHECK(give(e.get(), "some", lora(4, 2)) == MIUDO_OK);
  CHECK(adapted_logits(e.get(), opened(e.get()), "some", ids) != plain);
}

TEST(a_conversation_keeps_the_adapter_of_its_first_step) {
  const EnginePtr e = make_engine(1);
  CHECK(give(e.get(), "a", lora(1, 3)) == MIUDO_OK);
  CHECK(give(e.get(), "b", lora(2, 3)) == MIUDO_OK);
  const std::vector<std::int32_t> ids = some_ids(40);
  const std::int64_t k = opened(e.get());
  CHECK(adapted_logits(e.get(), k, "a", ids).size() == 40 * kVocab);
  const auto step = [&](const char* adapter) {
    miudo_work work = work_for(k, ids, 0);
    work.adapter = adapter;
    return miudo_step(e.get(), &work, 1, nullptr);
  };
  CHECK(step("b") == MIUDO_REQUEST);
  CHECK(step(nullptr) == MIUDO_REQUEST);
  CHECK(step("c") == MIUDO_REQUEST);
  CHECK(step("a") == MIUDO_OK);
  CHECK(miudo_remove_adapter(e.get(), "a", nullptr) == MIUDO_REQUEST);
  CHECK(miudo_truncate(e.get(), k, 0, nullptr) == MIUDO_OK);
  CHECK(miudo_remove_adapter(e.get(), "a", nullptr) == MIUDO_OK);
  CHECK(miudo_remove_adapter(e.get(), "a", nullptr) == MIUDO_REQUEST);
  CHECK(step("a") == MIUDO_REQUEST);
  CHECK(step("b") == MIUDO_OK);
  CHECK(miudo_close(e.get(), k, nullptr) == MIUDO_OK);
  CHECK(miudo_remove_adapter(e.get(), "b", nullptr) == MIUDO_OK);
}

TEST(scores_and_generation_take_an_adapter) {
  const EnginePtr e = make_engine(2);
  CHECK(give(e.get(), "a", lora(1, 3)) == MIUDO_OK);
  const std::vector<std::int32_t> ids = some_ids(40);
  std::vector<float> logprobs(39), with(39);
  std::vector<std::int32_t> argmax(39), tokens(8);
  miudo_scores scores = {logprobs.data(), argmax.data(), nullptr, 0, nullptr, nullptr};
  CHECK(miudo_score(e.get(), ids.data(), 40, nullptr, &scores, nullptr) == MIUDO_OK);
  scores.logprobs = with.data();
  CHECK(miudo_score(e.get(), ids.data(), 40, "a", &scores, nullptr) == MIUDO_OK);
  CHECK(miudo_score(e.get(), ids.data(), 40, "b", &scores, nullptr) == MIUDO_REQUEST);
  CHECK(with != logprobs);
  std::size_t n = 0;
  CHECK(miudo_generate(e.get(), ids.data(), 40, "a", &kGreedy, nullptr, 0, 8, nullptr, nullptr,
                       tokens.data(), &n, nullptr) == MIUDO_OK);
  CHECK(n == 8 && tokens[0] >= 0);
  const std::vector<float> logits = adapted_logits(e.get(), opened(e.get()), "a", ids);
  std::int32_t best = 0;
  for (std::int32_t v = 1; v < kVocab; ++v) {
    const float* last = logits.data() + 39 * kVocab;
    if (last[v] > last[best]) best = v;
  }
  CHECK(tokens[0] == best);
}

TEST(a_refused_adapter_leaves_nothing_behind) {
  const EnginePtr e = make_engine(1);
  const auto refused = [&](const auto& spoil, miudo_status status) {
    LoraNoise made = lora(1, 3);
    std::vector<miudo_low_rank> parts = made.given();
    spoil(parts, made);
    CHECK(miudo_add_adapter(e.get(), "a", parts.data(), parts.size(), nullptr) == status);
  };
  using Parts = std::vector<miudo_low_rank>;
  refused([](Parts& p, LoraNoise&) { p[3].n_down -= 1; }, MIUDO_MODEL_FILE);
  refused([](Parts& p, LoraNoise&) { p[3].n_up += 1; }, MIUDO_MODEL_FILE);
  refused([](Parts& p, LoraNoise&) { p[3].rank = 0; }, MIUDO_MODEL_FILE);
  refused([](Parts& p, LoraNoise&) { p[3].rank = -1; }, MIUDO_MODEL_FILE);
  refused([](Parts& p, LoraNoise&) { p[3].rank = INT64_MAX; }, MIUDO_MODEL_FILE);
  refused([](Parts& p, LoraNoise&) { p[3].matrix = "embed.weight"; }, MIUDO_MODEL_FILE);
  refused([](Parts& p, LoraNoise&) { p[3].matrix = "layers.2.attn.q.weight"; }, MIUDO_MODEL_FILE);
  refused([](Parts& p, LoraNoise&) { p[3].matrix = p[0].matrix; }, MIUDO_MODEL_FILE);
  refused([](Parts& p, LoraNoise&) { p[3].matrix = nullptr; }, MIUDO_REQUEST);
  refused([](Parts& p, LoraNoise&) { p[3].down = nullptr; }, MIUDO_REQUEST);
  refused([](Parts& p, LoraNoise&) { p[3].scale = std::nanf(""); }, MIUDO_MODEL_FILE);
  refused([](Parts& p, LoraNoise&) { p[3].scale = 3e38f; p[2].scale = HUGE_VALF; },
          MIUDO_MODEL_FILE);
  refused([](Parts&, LoraNoise& m) { m.numbers[7][1] = std::nanf(""); }, MIUDO_MODEL_FILE);
  refused([](Parts&, LoraNoise& m) { m.numbers[6][1] = HUGE_VALF; }, MIUDO_MODEL_FILE);
  refused([](Parts& p, LoraNoise&) { p.clear(); }, MIUDO_MODEL_FILE);
  CHECK(miudo_remove_adapter(e.get(), "a", nullptr) == MIUDO_REQUEST);
  CHECK(miudo_add_adapter(e.get(), nullptr, nullptr, 0, nullptr) == MIUDO_REQUEST);
  CHECK(give(e.get(), "", lora(1, 3)) == MIUDO_REQUEST);
  CHECK(give(e.get(), "a", lora(1, 3)) == MIUDO_OK);
  CHECK(give(e.get(), "a", lora(1, 3)) == MIUDO_REQUEST);
  CHECK(miudo_remove_adapter(nullptr, "a", nullptr) == MIUDO_REQUEST);
}

int always(void*) { return 1; }

TEST(an_interrupted_first_step_binds_nothing) {
  const EnginePtr e = make_engine(1, 1 << 24, always);
  CHECK(give(e.get(), "a", lora(1, 3)) == MIUDO_OK);
  const std::vector<std::int32_t> ids = some_ids(5);
  miudo_work work = work_for(opened(e.get()), ids, 0);
  work.adapter = "a";
  CHECK(miudo_step(e.get(), &work, 1, nullptr) == MIUDO_INTERRUPTED);
  CHECK(miudo_remove_adapter(e.get(), "a", nullptr) == MIUDO_OK);
}

}  // namespace
