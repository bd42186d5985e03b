#include "probe/probe.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <new>
#include <thread>
#include <vector>

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "util/buffer.h"

namespace miudo {

extern const ProbeLoops kPortableLoops;
#if defined(__x86_64__)
extern const ProbeLoops kAvx2Loops, kAvx512Loops;
#elif defined(__aarch64__) && defined(__linux__)
extern const ProbeLoops kNeonLoops;
#endif

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kStep = 256;          // what ProbeLoops::read goes by
constexpr std::size_t kPiece = 1u << 20;    // read between two looks at the clock
constexpr std::size_t kRounds = 20'000;     // the same of products: 10 to 100 microseconds

std::vector<const ProbeLoops*> available() {
  std::vector<const ProbeLoops*> found;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vnni")) {
    found.push_back(&kAvx512Loops);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    found.push_back(&kAvx2Loops);
  }
#elif defined(__aarch64__) && defined(__linux__)
  if ((getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0) found.push_back(&kNeonLoops);
#endif
  found.push_back(&kPortableLoops);
  return found;
}

// What one thread does between two looks at the clock; returns the units of it.
class Share {
 public:
  Share(const ProbePlan& plan, std::size_t bytes) : plan_(plan), bytes_(bytes) {
    if (plan.kind != ProbeKind::kRead) return;
    data_ = Buffer<std::uint8_t>(bytes, kUnset);  // on large pages, as weights are
    // By the thread that reads it: memory comes from its part of the machine. Not zero, which a
    // system may keep once for many pages.
    std::memset(data_.data(), 1, bytes);
  }

  double run() {
    const ProbeLoops& loops = *plan_.loops;
    if (plan_.kind == ProbeKind::kInt8) {
      kept_ += loops.int8(kRounds);
      return kRounds * loops.int8_operations;
    }
    if (plan_.kind == ProbeKind::kFloat) {
      kept_ += loops.floats(kRounds);
      return kRounds * loops.float_operations;
    }
    const std::size_t n = std::min(kPiece, bytes_ - at_);
    __asm__ volatile("" : : "r"(data_.data()) : "memory");  // it may have changed: read it again
    kept_ += loops.read(data_.data() + at_, n);
    at_ = at_ + n == bytes_ ? 0 : at_ + n;
    return static_cast<double>(n);
  }

  std::uint64_t kept() const { return kept_; }

 private:
  const ProbePlan& plan_;
  std::size_t bytes_, at_ = 0;
  std::uint64_t kept_ = 0;
  Buffer<std::uint8_t> data_;
};

// Threads begin each rate together.
struct Start {
  std::atomic<int> ready{0};
  std::atomic<bool> failed{false};
  std::atomic<std::uint64_t> kept{0};
};

// Counts this thread as ready and waits until `wanted` are, or one has failed.
void meet(Start& start, int wanted) {
  start.ready.fetch_add(1);
  while (start.ready.load() < wanted && !start.failed) std::this_thread::yield();
}

void serve(const ProbePlan& plan, std::size_t bytes, Start& start, std::span<double> rates) {
  std::unique_ptr<Share> share;
  try {
    share = std::make_unique<Share>(plan, bytes);
    share->run();  // the first round finds the caches cold
  } catch (const std::bad_alloc&) {
    start.failed = true;
  }
  meet(start, plan.threads);
  if (start.failed) return;
  for (std::size_t i = 0; i < rates.size(); ++i) {
    meet(start, plan.threads * static_cast<int>(i + 2));
    const auto begin = Clock::now();
    double units = 0.0, seconds = 0.0;
    while (seconds < plan.seconds) {
      units += share->run();
      seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    }
    rates[i] = units / seconds;
  }
  start.kept.fetch_add(share->kept());
}

}  // namespace

std::span<const ProbeLoops* const> probe_loops() {
  static const std::vector<const ProbeLoops*> found = available();
  return found;
}

void probe(const ProbePlan& plan, std::span<double> rates) {
  const auto threads = static_cast<std::size_t>(plan.threads);
  const std::size_t bytes = round_up(std::max<std::size_t>(plan.size_bytes / threads, 1), kStep);
  std::vector<double> by_thread(threads * rates.size());
  Start start;
  {
    std::vector<std::jthread> others;
    const auto share = [&](std::size_t t) {
      serve(plan, bytes, start, std::span(by_thread).subspan(t * rates.size(), rates.size()));
    };
    try {
      for (std::size_t t = 1; t < threads; ++t) others.emplace_back(share, t);
    } catch (...) {
      start.failed = true;  // those that are there stop waiting for the rest
      throw;
    }
    share(0);
  }
  if (start.failed) throw std::bad_alloc();
  for (std::size_t i = 0; i < rates.size(); ++i) {
    rates[i] = 0.0;
    for (std::size_t t = 0; t < threads; ++t) rates[i] += by_thread[t * rates.size() + i];
  }
}

}  // namespace miudo
