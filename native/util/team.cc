#include "util/team.h"

#include <system_error>

namespace miudo {
namespace {

// Some hundred microseconds: longer than a caller takes between two tokens, for to wake a sleeper
// costs thirty or more; and short enough to leave the processor to others soon.
constexpr int kSpins = 10000;

void spin_pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

}  // namespace

Team::Team(int threads) {
  try {
    start(threads);
    deal_ = std::make_unique<Deal>(size());
  } catch (...) {
    end();
    throw;
  }
}

Team::~Team() { end(); }

void Team::start(int threads) {
  try {
    for (int worker = 1; worker < threads; ++worker) {
      threads_.emplace_back([this, worker] { serve(worker); });
    }
  } catch (const std::system_error&) {
    // Fewer threads than wanted still give the same results.
  }
}

void Team::end() noexcept {
  stop_.store(true);
  publish(job_, job_.load() + 1, idle_);
  for (std::thread& thread : threads_) thread.join();
}

void Team::wait_while(const std::atomic<std::uint32_t>& value, std::uint32_t seen,
                      std::atomic<int>& sleepers) {
  for (int spin = 0; spin < kSpins; ++spin) {
    if (value.load(std::memory_order_acquire) != seen) return;
    spin_pause();
  }
  sleepers.fetch_add(1);
  value.wait(seen);
  sleepers.fetch_sub(1);
}

// Sequentially consistent with the sleepers' count: one of the two sees the other.
void Team::publish(std::atomic<std::uint32_t>& value, std::uint32_t next,
                   std::atomic<int>& sleepers) {
  value.store(next);
  if (sleepers.load() > 0) value.notify_all();
}

void Team::dispatch(Call call, const void* work) {
  if (threads_.empty()) return call(work, 0);
  call_ = call;
  work_ = work;
  publish(job_, job_.load(std::memory_order_relaxed) + 1, idle_);
  call(work, 0);
  meet();
}

void Team::meet() {
  if (threads_.empty()) return;
  const std::uint32_t now = meeting_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size()) {
    arrived_.store(0, std::memory_order_relaxed);
    publish(meeting_, now + 1, late_);
  } else {
    wait_while(meeting_, now, late_);
  }
}

void Team::serve(int worker) {
  std::uint32_t seen = 0;
  for (;;) {
    wait_while(job_, seen, idle_);
    if (job_.load(std::memory_order_acquire) == seen) continue;  // woken for nothing
    if (stop_.load()) return;
    ++seen;
    call_(work_, worker);
    meet();
  }
}

}  // namespace miudo
