// Deals out numbered tasks to the workers of a team: each has a run of its own, which it takes piece
// by piece, and then what the others have left. A worker that lost its processor holds nobody up
// for longer than a piece takes.
// For: work that streams memory, where one long run a worker is fastest. Read next: util/team.h.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <vector>

#include "util/buffer.h"

namespace miudo {

class Deal {
 public:
  explicit Deal(int workers) : slots_(static_cast<std::size_t>(workers)) {}

  // Calls work(begin, end) for pieces of [0, tasks) until none is left. All `team` workers call it
  // with the same numbers, and meet before the next call.
  template <typename Work>
  void run(int worker, int team, std::size_t tasks, std::size_t piece, const Work& work) {
    const auto workers = static_cast<std::size_t>(team), own = static_cast<std::size_t>(worker);
    const std::size_t now = slots_[own].round++ % 2;
    // The other count was done with at the last meeting.
    slots_[own].taken[1 - now].store(0, std::memory_order_relaxed);
    for (std::size_t i = 0; i < workers; ++i) {
      const std::size_t whose = (own + i) % workers;
      const std::size_t begin = tasks * whose / workers, end = tasks * (whose + 1) / workers;
      for (;;) {
        const std::size_t taken =
            slots_[whose].taken[now].fetch_add(piece, std::memory_order_relaxed);
        if (begin + taken >= end) break;
        work(begin + taken, std::min(begin + taken + piece, end));
      }
    }
  }

  // Before a run of another number of workers.
  void reset() {
    for (Slot& slot : slots_) {
      slot.taken[0] = slot.taken[1] = 0;
      slot.round = 0;
    }
  }

 private:
  struct alignas(kCacheLine) Slot {
    std::atomic<std::size_t> taken[2] = {0, 0};
    std::size_t round = 0;
  };
  std::vector<Slot> slots_;
};

}  // namespace miudo
