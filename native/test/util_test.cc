#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "test/check.h"
#include "util/buffer.h"
#include "util/cpu.h"
#include "util/philox.h"
#include "util/team.h"

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

TEST(a_team_runs_every_worker_once_and_meets) {
  for (const int threads : {1, 2, 3, 7}) {
    Team team(threads, true);
    std::vector<std::atomic<int>> ran(static_cast<std::size_t>(threads));
    std::atomic<int> sum{0};
    std::atomic<bool> together{true};
    constexpr int kRuns = 200, kMeetings = 5;
    for (int run = 0; run < kRuns; ++run) {
      team.run([&](int worker) {
        ran[static_cast<std::size_t>(worker)].fetch_add(1);
        for (int i = 0; i < kMeetings; ++i) {
          sum.fetch_add(1);
          team.meet();
          // Nobody is past the next meeting, and nobody before this one.
          if (sum.load() != (run * kMeetings + i + 1) * threads) together = false;
          team.meet();
        }
      });
    }
    CHECK(together);
    for (const auto& count : ran) CHECK(count == kRuns);
  }
}

TEST(a_team_wakes_from_sleep) {
  Team team(3, true);
  std::atomic<int> sum{0};
  for (int i = 0; i < 3; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));  // longer than it spins
    team.run([&](int worker) {
      if (worker == 1) std::this_thread::sleep_for(std::chrono::milliseconds(20));
      sum.fetch_add(1);
    });
  }
  CHECK(sum == 9);
}

TEST(teams_come_and_go) {
  for (int i = 0; i < 50; ++i) {
    auto team = std::make_unique<Team>(3, true);
    std::atomic<int> sum{0};
    if (i % 2 == 0) team->run([&](int) { sum.fetch_add(1); });
    CHECK(sum == (i % 2 == 0 ? 3 : 0));
  }
}

TEST(a_crowded_team_gets_smaller_and_tries_again) {
  Crowd crowd(4);
  const auto ran = [&](double now, double seconds, double asleep) {
    crowd.after(now, seconds, asleep);
    return crowd.active();
  };
  CHECK(ran(0.0, 0.019, 1.0) == 4);  // too short to tell
  CHECK(ran(1.0, 0.041, 0.0) == 2);  // 1 s lost of 0.24
  CHECK(crowd.before(1.05) == 2 && crowd.before(1.11) == 4);
  CHECK(ran(1.2, 0.05, 0.035) == 4);  // of 0.2 s of work less than a fifth
  CHECK(ran(1.3, 0.1, 0.2) == 2 && ran(1.4, 0.1, 0.2) == 1);
  CHECK(crowd.before(1.75) == 1 && crowd.before(1.85) == 4);  // longer each time
  CHECK(ran(2.4, 0.5, 0.0) == 4 && ran(2.5, 0.1, 0.2) == 2);
  CHECK(crowd.before(2.55) == 2 && crowd.before(2.61) == 4);  // and short again after a calm
}

TEST(work_is_done_whatever_the_size_of_the_team) {
  Team team(6);  // more than most test machines have: some runs will be of fewer
  for (int run = 0; run < 300; ++run) {
    std::vector<std::atomic<int>> done(101);
    std::atomic<int> workers{0};
    team.run([&](int worker) {
      if (worker == 0) workers = team.size();
      for (int round = 0; round < 3; ++round) {
        team.deal(worker, done.size(), 3, [&](std::size_t begin, std::size_t end) {
          for (std::size_t i = begin; i < end; ++i) done[i].fetch_add(1);
        });
      }
      if (run % 10 == 0 && worker == 1) {
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
      }
      team.meet();
    });
    bool all = workers >= 1 && workers <= 6;
    for (const auto& count : done) all = all && count == 3;
    CHECK(all);
  }
  CHECK(team.threads() == 6);
}

TEST(the_machine_has_a_core) {
  CHECK(choose_threads(0) >= 1);
  CHECK(choose_threads(3) == 3);
  CHECK(isa_available(choose_isa()));
}

}  // namespace
}  // namespace miudo
