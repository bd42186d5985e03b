#include "util/team.h"

#include <chrono>
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

// A job's number and how many workers it is for, in one word, so that those who are left out need
// read nothing else, and may do so late.
constexpr int kCountBits = 10;
std::uint32_t job_after(std::uint32_t job, int workers) {
  return ((job >> kCountBits) + 1) << kCountBits | static_cast<std::uint32_t>(workers);
}
int workers_of(std::uint32_t job) { return static_cast<int>(job & ((1u << kCountBits) - 1)); }

using Clock = std::chrono::steady_clock;

double seconds_now() {
  return std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
}

}  // namespace

Team::Team(int threads, bool steady) : steady_(steady) {
  try {
    start(threads);
    deal_ = std::make_unique<Deal>(this->threads());
    crowd_ = Crowd(this->threads());
    workers_ = this->threads();
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
  publish(job_, job_after(job_.load(), 0), idle_);
  for (std::thread& thread : threads_) thread.join();
}

double Team::wait_while(const std::atomic<std::uint32_t>& value, std::uint32_t seen,
                        std::atomic<int>& sleepers) {
  for (int spin = 0; spin < kSpins; ++spin) {
    if (value.load(std::memory_order_acquire) != seen) return 0.0;
    spin_pause();
  }
  const double start = seconds_now();
  sleepers.fetch_add(1);
  value.wait(seen);
  sleepers.fetch_sub(1);
  return seconds_now() - start;
}

// Sequentially consistent with the sleepers' count: one of the two sees the other.
void Team::publish(std::atomic<std::uint32_t>& value, std::uint32_t next,
                   std::atomic<int>& sleepers) {
  value.store(next);
  if (sleepers.load() > 0) value.notify_all();
}

void Team::dispatch(Call call, const void* work) {
  if (threads_.empty()) return call(work, 0);
  const double start = seconds_now();
  if (!steady_) resize(crowd_.before(start));
  if (size() > 1) {
    call_ = call;
    work_ = work;
    publish(job_, job_after(job_.load(std::memory_order_relaxed), size()), idle_);
  }
  call(work, 0);
  meet();
  if (steady_) return;
  const double now = seconds_now();
  crowd_.after(now, now - start, static_cast<double>(asleep_ns_.exchange(0)) * 1e-9);
}

// Counts of tasks taken begin anew with another number of workers.
void Team::resize(int workers) {
  if (workers != workers_) deal_->reset();
  workers_ = workers;
}

void Team::meet(Laps* laps) {
  const int workers = size();  // read before this one arrives: then it may change
  if (workers == 1) return;
  if (laps != nullptr) return laps->waiting([this] { meet(); });
  const std::uint32_t now = meeting_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == workers) {
    arrived_.store(0, std::memory_order_relaxed);
    publish(meeting_, now + 1, late_);
    return;
  }
  const double asleep = wait_while(meeting_, now, late_);
  if (asleep > 0.0) asleep_ns_.fetch_add(static_cast<std::int64_t>(asleep * 1e9));
}

void Team::serve(int worker) {
  std::uint32_t seen = 0;
  for (;;) {
    wait_while(job_, seen, idle_);
    const std::uint32_t job = job_.load(std::memory_order_acquire);
    if (stop_.load()) return;
    if (job == seen) continue;  // woken for nothing
    seen = job;
    if (worker >= workers_of(job)) continue;
    call_(work_, worker);
    meet();
  }
}

}  // namespace miudo
