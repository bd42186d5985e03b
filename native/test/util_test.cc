#include <atomic>
#include <memory>
#include <vector>

#include "test/check.h"
#include "util/buffer.h"
#include "util/cpu.h"
#include "util/philox.h"
#include "util/thread_pool.h"

namespace miudo {
namespace {

TEST(philox_is_numpy_s) {
  // numpy.random.Philox(counter=0, key=0).random_raw(4) and of key 3 | 5 << 64, counter 7.
  const PhiloxBlock zero = philox({1, 0, 0, 0}, {0, 0});
  CHECK(zero[0] == 0x02F4BA6408E4D89Bu && zero[3] == 0x907D7A052FD5B4DCu);
  const PhiloxBlock other = philox({8, 0, 0, 0}, {3, 5});
  CHECK(other[0] == 0x1BC8D901F3F8B2A6u && other[3] == 0x42F0D0F1F3E3AB63u);
}

TEST(uniform_lies_in_its_range) {
  for (std::uint64_t i = 0; i < 1000; ++i) {
    const double u = uniform(i, 1, i);
    CHECK(u >= 0.0 && u < 1.0);
  }
  CHECK(uniform(1, 2, ~std::uint64_t{0}) >= 0.0);  // the counter carries
}

TEST(buffers_are_aligned_and_zero) {
  for (const std::size_t n : {std::size_t{1}, std::size_t{17}, std::size_t{1000}}) {
    Buffer<float> a(n);
    CHECK(reinterpret_cast<std::uintptr_t>(a.data()) % kCacheLine == 0);
    for (std::size_t i = 0; i < n; ++i) CHECK(a[i] >= 0.0f && a[i] <= 0.0f);
    Buffer<float> b = std::move(a);
    CHECK(b.size() == n);
  }
  CHECK(Buffer<float>(0).empty());
}

TEST(a_pool_runs_every_task_once) {
  for (const int threads : {1, 2, 3, 7}) {
    ThreadPool pool(threads);
    for (const std::size_t tasks : {0u, 1u, 2u, 3u, 64u, 1000u}) {
      for (int repeat = 0; repeat < 50; ++repeat) {
        std::vector<std::atomic<int>> ran(tasks);
        std::atomic<bool> in_range{true};
        pool.run(tasks, [&](std::size_t task, int worker) {
          ran[task].fetch_add(1);
          if (worker < 0 || worker >= pool.size()) in_range = false;
        });
        bool once = in_range;
        for (const auto& count : ran) once = once && count == 1;
        CHECK(once);
      }
    }
  }
}

TEST(more_tasks_than_a_ticket_counts) {
  ThreadPool pool(2);
  std::atomic<std::size_t> sum{0};
  const std::size_t tasks = (std::size_t{1} << 20) + 5;
  pool.run(tasks, [&](std::size_t, int) { sum.fetch_add(1, std::memory_order_relaxed); });
  CHECK(sum == tasks);
}

TEST(pools_come_and_go) {
  for (int i = 0; i < 50; ++i) {
    auto pool = std::make_unique<ThreadPool>(3);
    std::atomic<int> sum{0};
    if (i % 2 == 0) pool->run(5, [&](std::size_t, int) { sum.fetch_add(1); });
    CHECK(sum == (i % 2 == 0 ? 5 : 0));
  }
}

TEST(the_machine_has_a_core) {
  CHECK(choose_threads(0) >= 1);
  CHECK(choose_threads(3) == 3);
  CHECK(isa_available(choose_isa()));
}

}  // namespace
}  // namespace miudo
