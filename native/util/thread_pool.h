// Persistent worker threads that share out numbered tasks.
// For: splitting rows, heads and positions. Tasks must not depend on which thread runs them:
// that is what keeps results equal whatever the thread count. Not for: nested or blocking work.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

namespace miudo {

class ThreadPool {
 public:
  // `threads` counts the caller, which works too; 1 starts no thread at all.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls work(task, worker) for task in [0, tasks) and returns when all are done. `worker` is
  // in [0, size()): scratch space may hang on it, results may not. `work` must not throw.
  template <typename Work>
  void run(std::size_t tasks, const Work& work) {
    const Call call = [](const void* w, std::size_t task, int worker) {
      (*static_cast<const Work*>(w))(task, worker);
    };
    dispatch(tasks, call, &work);
  }

 private:
  using Call = void (*)(const void* work, std::size_t task, int worker);

  void dispatch(std::size_t tasks, Call call, const void* work);
  void serve(int worker);
  // Takes tasks of the job in `ticket` until none is left.
  void drain(std::uint64_t ticket, int worker);

  // A ticket packs [epoch:24 | tasks:20 | next:20]. A worker claims a task by raising `next`
  // with compare-and-swap, so a late worker can never claim a task of a job that has ended.
  std::atomic<std::uint64_t> ticket_{0};
  std::atomic<std::uint32_t> done_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  // Written before ticket_ is published, read only after a claim of that ticket.
  Call call_ = nullptr;
  const void* work_ = nullptr;
  std::vector<std::thread> workers_;
};

}  // namespace miudo
