// Where the time of a step goes, by the clock of the worker that also calls.
// For: whoever changes a kernel, and `miudo bench`. Off unless asked for: a clock is read some ten
// times a layer.
// Read next: model/forward.cc, which says when a phase ends.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>

namespace miudo {

// In the order of miudo.h's names.
enum class Phase : std::size_t {
  kEntry,  // checks, pages, token rows, rotations
  kNorm,   // residual stream and norms
  kQkv,    // queries, keys and values, into the cache
  kAttention,
  kOutput,  // attention's last matrix
  kFeedForward,
  kHead,
  kSampling,
  kWaiting  // for the other workers, in whatever phase
};
constexpr std::size_t kPhases = 9;

class Laps {
 public:
  // From here on until the first end().
  void begin() { last_ = Clock::now(); }

  // What went by since the last of these calls was `phase`, but for waiting.
  void end(Phase phase) {
    const auto now = Clock::now();
    add(phase, now - last_);
    last_ = now;
  }

  template <typename Wait>
  void waiting(const Wait& wait) {
    const auto before = Clock::now();
    wait();
    const auto spent = Clock::now() - before;
    add(Phase::kWaiting, spent);
    last_ += spent;
  }

  const std::array<double, kPhases>& seconds() const { return seconds_; }

 private:
  using Clock = std::chrono::steady_clock;

  void add(Phase phase, Clock::duration spent) {
    seconds_[static_cast<std::size_t>(phase)] += std::chrono::duration<double>(spent).count();
  }

  Clock::time_point last_;
  std::array<double, kPhases> seconds_ = {};
};

}  // namespace miudo
