// Persistent threads that run one function together and meet at barriers inside it.
// For: a forward pass, whose pieces are split by worker number. What a worker does must not decide
// what comes out: that is what keeps results equal whatever the thread count.
// Not for: nested or blocking work. Read next: model/linear.h, which splits rows and tiles.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "util/buffer.h"
#include "util/crowd.h"
#include "util/deal.h"
#include "util/laps.h"

namespace miudo {

class Team {
 public:
  // `threads` counts the caller, which works too; 1 starts no thread at all. A team that is not
  // `steady` runs on fewer of them for a while where other programs want the processors.
  explicit Team(int threads, bool steady = false);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  int threads() const { return static_cast<int>(threads_.size()) + 1; }
  // Workers of this run, inside run().
  int size() const { return workers_; }

  // Calls work(worker) on all workers of a run at once, as worker 0 on the caller's thread, and returns
  // when all are done. `work` must not throw. One caller at a time.
  template <typename Work>
  void run(const Work& work) {
    const Call call = [](const void* w, int worker) { (*static_cast<const Work*>(w))(worker); };
    dispatch(call, &work);
  }

  // Inside run(): returns when every worker has called it as often as this one. `laps`, where
  // this worker keeps them, are told of the waiting.
  void meet(Laps* laps = nullptr);

  // Inside run(), on every worker: deals out tasks, and meets.
  template <typename Work>
  void deal(int worker, std::size_t tasks, std::size_t piece, const Work& work,
            Laps* laps = nullptr) {
    deal_->run(worker, size(), tasks, piece, work);
    meet(laps);
  }

 private:
  using Call = void (*)(const void* work, int worker);

  void dispatch(Call call, const void* work);
  void serve(int worker);

  void start(int threads);
  void end() noexcept;
  void resize(int workers);

  // Waits by spinning, then asleep, while `value` is `seen`; returns the seconds asleep.
  static double wait_while(const std::atomic<std::uint32_t>& value, std::uint32_t seen,
                           std::atomic<int>& sleepers);
  static void publish(std::atomic<std::uint32_t>& value, std::uint32_t next,
                      std::atomic<int>& sleepers);

  // On lines of their own: every worker looks at these all the time.
  alignas(kCacheLine) std::atomic<std::uint32_t> job_{0};  // number, then workers: see job_after
  alignas(kCacheLine) std::atomic<std::uint32_t> meeting_{0};
  alignas(kCacheLine) std::atomic<int> arrived_{0};
  alignas(kCacheLine) std::atomic<int> idle_{0};
  std::atomic<int> late_{0};
  std::atomic<bool> stop_{false};
  std::atomic<std::int64_t> asleep_ns_{0};  // at meetings of this run, all workers together
  const bool steady_;
  // Written before job_ is published, read after by those who are in the run.
  int workers_ = 1;
  Call call_ = nullptr;
  const void* work_ = nullptr;
  Crowd crowd_{1};
  std::vector<std::thread> threads_;
  std::unique_ptr<Deal> deal_;  // for as many workers as there are
};

}  // namespace miudo
