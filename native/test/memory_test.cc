// Memory that runs out at every allocation in turn, through the whole life of an engine:
// row "N4" of docs/bad-input.md.
//
// The operators below are the whole program's. Those of a sanitizer give way to them; it still sees
// malloc and free, so that what a refusal leaves behind is found as a leak.
#include <atomic>
#include <cstdlib>
#include <new>

#include "test/tiny_engine.h"
#include "util/team.h"

namespace {

std::atomic<long> left{-1};  // allocations until one fails; below 0: none does
std::atomic<long> failed{0};

void* allocate(std::size_t size, std::size_t alignment) {
  if (left.load(std::memory_order_relaxed) >= 0 && left.fetch_sub(1) == 0) {
    failed.fetch_add(1);
    return nullptr;
  }
  if (size == 0) size = 1;
  if (alignment <= alignof(std::max_align_t)) return std::malloc(size);
  return std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
}

// In line, GCC holds the free against an operator new that it has not looked into.
[[gnu::noinline]] void release(void* memory) noexcept { std::free(memory); }

void* need(void* memory) {
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* operator new(std::size_t n) { return need(allocate(n, 1)); }
void* operator new[](std::size_t n) { return need(allocate(n, 1)); }
void* operator new(std::size_t n, const std::nothrow_t&) noexcept { return allocate(n, 1); }
void* operator new[](std::size_t n, const std::nothrow_t&) noexcept { return allocate(n, 1); }
void* operator new(std::size_t n, std::align_val_t a) {
  return need(allocate(n, static_cast<std::size_t>(a)));
}
void* operator new[](std::size_t n, std::align_val_t a) {
  return need(allocate(n, static_cast<std::size_t>(a)));
}
void operator delete(void* p) noexcept { release(p); }
void operator delete[](void* p) noexcept { release(p); }
void operator delete(void* p, std::size_t) noexcept { release(p); }
void operator delete[](void* p, std::size_t) noexcept { release(p); }
void operator delete(void* p, const std::nothrow_t&) noexcept { release(p); }
void operator delete[](void* p, const std::nothrow_t&) noexcept { release(p); }
void operator delete(void* p, std::align_val_t) noexcept { release(p); }
void operator delete[](void* p, std::align_val_t) noexcept { release(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { release(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { release(p); }

namespace {

using namespace miudo::test;

// Calls `run` with the first allocation failing, then the second, and so on, until none is left
// that could. Returns how many failed. `after` runs behind every failure.
template <typename Run, typename After>
long fail_each(const Run& run, const After& after) {
  for (long n = 0;; ++n) {
    failed = 0;
    left = n;
    const miudo_status status = run();
    left = -1;
    if (failed == 0) {
      CHECK(status == MIUDO_OK);
      return n;
    }
    // What could do with less memory, as a sort can, may go on.
    CHECK(status == MIUDO_RESOURCE || status == MIUDO_OK);
    after();
    if (n > 20000) {
      CHECK(!"allocations without end");
      return n;
    }
  }
}

miudo_options options_for(int threads) {
  miudo_options options = {};
  options.threads = threads;
  options.int8_activations = 1;
  options.cache_bytes = 1 << 20;
  return options;
}

TEST(an_engine_that_cannot_be_made_leaves_nothing_behind) {
  const miudo_config c = config();
  const miudo_options options = options_for(3);
  miudo_engine* raw = nullptr;
  const long n = fail_each(
      [&] {
        miudo_destroy(raw);
        raw = nullptr;
        return miudo_create(&c, &options, &raw, nullptr);
      },
      [&] { CHECK(raw == nullptr || miudo_threads(raw) >= 1); });
  CHECK(n > 20 && raw != nullptr);
  miudo_destroy(raw);
}

TEST(tensors_can_be_given_again_after_a_failure) {
  const miudo_config c = config();
  const miudo_options options = options_for(2);
  miudo_engine* raw = nullptr;
  CHECK(miudo_create(&c, &options, &raw, nullptr) == MIUDO_OK);
  const EnginePtr e(raw);
  const std::vector<float> values(kVocab * kModel, 1.0f);
  const auto give = [&](const char* name, std::vector<std::int64_t> shape) {
    std::size_t size = 4;
    for (const std::int64_t s : shape) size *= static_cast<std::size_t>(s);
    const miudo_tensor one = {name, MIUDO_F32, shape.data(), shape.size(), values.data(), size, 0};
    const miudo_tensor both[] = {one, one};
    const std::uint64_t held = miudo_weight_bytes(raw);
    CHECK(miudo_set_tensors(raw, both, 2, nullptr) == MIUDO_MODEL_FILE);  // and neither is there
    CHECK(miudo_weight_bytes(raw) == held);
    const auto set = [&] { return miudo_set_tensors(raw, &one, 1, nullptr); };
    CHECK(fail_each(set, [] {}) > 1);
    CHECK(set() == MIUDO_MODEL_FILE);  // given once
  };
  give("embed.weight", {kVocab, kModel});
  give("norm.weight", {kModel});
  miudo_status status = MIUDO_OK;
  fail_each([&] { return status = miudo_finalize(raw, nullptr), MIUDO_OK; }, [] {});
  CHECK(status == MIUDO_MODEL_FILE);  // others are missing
}

// Scratch that was made stays made, so every failure has an engine of its own.
TEST(a_step_without_memory_changes_nothing) {
  const std::vector<std::int32_t> ids = some_ids(70), rest = {1, 2, 3};
  std::int64_t held = 0;
  EnginePtr e = make_engine(1);
  CHECK(miudo_open(e.get(), &held, nullptr) == MIUDO_OK);
  const std::vector<float> first = all_logits(e.get(), held, ids);
  const std::vector<float> second = all_logits(e.get(), held, rest);

  std::vector<float> logits(ids.size() * kVocab), more(rest.size() * kVocab);
  std::vector<float> hidden(3 * ids.size() * kModel);
  const auto run = [&](const std::vector<std::int32_t>& given, std::vector<float>& out) {
    miudo_work work = work_for(held, given, MIUDO_WANT_ALL_LOGITS | MIUDO_WANT_SAMPLE);
    work.logits = out.data();
    work.sampling.temperature = 0.9;
    work.sampling.repetition_penalty = 1.1;
    work.hidden = hidden.data();
    if (&out == &logits) work.want |= MIUDO_WANT_HIDDEN;
    return miudo_step(e.get(), &work, 1, nullptr);
  };
  const auto length_is = [&](std::size_t wanted) {
    std::size_t length = 0;
    return miudo_length(e.get(), held, &length, nullptr) == MIUDO_OK && length == wanted;
  };
  const auto anew = [&] {
    e = make_engine(2);
    CHECK(miudo_open(e.get(), &held, nullptr) == MIUDO_OK);
  };
  anew();
  CHECK(fail_each([&] { return run(ids, logits); },
                  [&] {
                    CHECK(length_is(0) && miudo_cache_bytes_used(e.get()) == 0);
                    CHECK(run(ids, logits) == MIUDO_OK && logits == first);  // it works again
                    anew();
                  }) > 30);
  CHECK(length_is(70) && logits == first);
  fail_each([&] { return run(rest, more); }, [&] { CHECK(length_is(70)); });
  CHECK(length_is(73) && more == second);
  CHECK(fail_each([&] { return miudo_truncate(e.get(), held, 33, nullptr); }, [] {}) == 0);
  CHECK(fail_each([&] { return miudo_close(e.get(), held, nullptr); }, [] {}) == 0);
  CHECK(miudo_cache_bytes_used(e.get()) == 0);
  CHECK(fail_each([&] { return miudo_open(e.get(), &held, nullptr); }, [] {}) > 0);
}

TEST(scores_and_texts_without_memory) {
  EnginePtr e = make_engine(2);
  const std::vector<std::int32_t> ids = some_ids(60);
  std::vector<float> logprobs(59), total(59), top(59 * 3);
  std::vector<std::int32_t> argmax(59), top_ids(59 * 3), tokens(8), again(8);
  const miudo_scores scores = {logprobs.data(), argmax.data(),  total.data(), 3,
                               top_ids.data(),  top.data()};
  const auto anew = [&] {
    CHECK(miudo_cache_bytes_used(e.get()) == 0);
    e = make_engine(2);
  };
  CHECK(fail_each(
            [&] {
              return miudo_score(e.get(), ids.data(), ids.size(), nullptr, &scores, nullptr);
            },
            anew) > 30);
  std::size_t n = 0;
  const auto write = [&](std::vector<std::int32_t>& to) {
    return miudo_generate(e.get(), ids.data(), 5, nullptr, &kGreedy, nullptr, 0, 8, nullptr,
                          nullptr, to.data(), &n, nullptr);
  };
  anew();
  CHECK(fail_each([&] { return write(tokens); }, anew) > 30);
  CHECK(write(again) == MIUDO_OK && tokens == again && n == 8);
}

TEST(an_adapter_without_memory_is_not_there) {
  const EnginePtr e = make_engine(2);
  Noise noise(5);
  const std::vector<float> down = noise.floats(2 * kModel), up = noise.floats(2 * kFeed);
  const miudo_low_rank part = {"layers.1.mlp.gate.weight", 2, down.data(), down.size(), up.data(),
                               up.size(), 0.5f};
  CHECK(fail_each([&] { return miudo_add_adapter(e.get(), "a", &part, 1, nullptr); },
                  [&] { CHECK(miudo_remove_adapter(e.get(), "a", nullptr) == MIUDO_REQUEST); }) > 3);
  const std::vector<std::int32_t> ids = some_ids(20);
  std::int64_t k = 0;
  CHECK(miudo_open(e.get(), &k, nullptr) == MIUDO_OK);
  miudo_work work = work_for(k, ids, MIUDO_WANT_SAMPLE);
  work.adapter = "a";
  fail_each([&] { return miudo_step(e.get(), &work, 1, nullptr); }, [] {});
  CHECK(work.token >= 0 && work.token < kVocab);
}

TEST(a_team_that_cannot_be_made_ends_its_threads) {
  for (long n = 0; n < 12; ++n) {
    left = n;
    try {
      const miudo::Team team(4);
      CHECK(team.size() >= 1);
    } catch (const std::bad_alloc&) {
    }
    left = -1;
  }
}

}  // namespace
