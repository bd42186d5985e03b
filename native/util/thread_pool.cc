#include "util/thread_pool.h"

#include <system_error>

namespace miudo {
namespace {

constexpr unsigned kFieldBits = 20;
constexpr std::uint64_t kFieldMask = (std::uint64_t{1} << kFieldBits) - 1;
// About 20 to 50 microseconds: longer than the gaps inside a token, shorter than a waste of power.
constexpr int kSpins = 2000;

std::uint64_t next_of(std::uint64_t ticket) { return ticket & kFieldMask; }
std::uint64_t tasks_of(std::uint64_t ticket) { return (ticket >> kFieldBits) & kFieldMask; }
bool exhausted(std::uint64_t ticket) { return next_of(ticket) >= tasks_of(ticket); }

void spin_pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  try {
    for (int worker = 1; worker < threads; ++worker) {
      workers_.emplace_back([this, worker] { serve(worker); });
    }
  } catch (const std::system_error&) {
    // Fewer threads than wanted still give the same results.
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  ticket_.fetch_add(std::uint64_t{1} << (2 * kFieldBits));
  ticket_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::dispatch(std::size_t tasks, Call call, const void* work) {
  if (workers_.empty() || tasks <= 1) {
    for (std::size_t task = 0; task < tasks; ++task) call(work, task, 0);
    return;
  }
  if (tasks > kFieldMask) {  // more than a ticket counts
    for (std::size_t task = kFieldMask; task < tasks; ++task) call(work, task, 0);
    tasks = kFieldMask;
  }
  call_ = call;
  work_ = work;
  done_.store(0, std::memory_order_relaxed);
  const std::uint64_t epoch = (ticket_.load(std::memory_order_relaxed) >> (2 * kFieldBits)) + 1;
  const std::uint64_t ticket =
      epoch << (2 * kFieldBits) | static_cast<std::uint64_t>(tasks) << kFieldBits;
  // Sequentially consistent with the sleeper's count: one of the two sees the other.
  ticket_.store(ticket);
  if (sleepers_.load() > 0) ticket_.notify_all();
  drain(ticket, 0);
  const auto wanted = static_cast<std::uint32_t>(tasks);
  for (int spin = 0; done_.load(std::memory_order_acquire) != wanted; ++spin) {
    if (spin < kSpins) {
      spin_pause();
      continue;
    }
    const std::uint32_t seen = done_.load(std::memory_order_acquire);
    if (seen != wanted) done_.wait(seen, std::memory_order_acquire);
  }
}

void ThreadPool::drain(std::uint64_t ticket, int worker) {
  const std::uint64_t epoch = ticket >> (2 * kFieldBits);
  for (;;) {
    if (ticket >> (2 * kFieldBits) != epoch || exhausted(ticket)) return;
    if (!ticket_.compare_exchange_weak(ticket, ticket + 1)) continue;
    const auto tasks = static_cast<std::uint32_t>(tasks_of(ticket));
    call_(work_, static_cast<std::size_t>(next_of(ticket)), worker);
    if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == tasks) done_.notify_one();
    ticket = ticket_.load();
  }
}

void ThreadPool::serve(int worker) {
  while (!stop_.load(std::memory_order_relaxed)) {
    std::uint64_t now = ticket_.load();
    for (int spin = 0; spin < kSpins && exhausted(now); ++spin) {
      spin_pause();
      now = ticket_.load();
    }
    if (!exhausted(now)) {
      drain(now, worker);
    } else if (!stop_.load()) {
      sleepers_.fetch_add(1);
      ticket_.wait(now);
      sleepers_.fetch_sub(1);
    }
  }
}

}  // namespace miudo
