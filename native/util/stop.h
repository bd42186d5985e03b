// Whether the caller has asked to stop: a function of the caller's, asked at most every few
// hundredths of a second, as to ask may wait for an interpreter's lock.
// For: long passes, between layers. Read next: model/forward.cc.
#pragma once

#include <chrono>

namespace miudo {

class Stop {
 public:
  Stop(int (*ask)(void*), void* context) : ask_(ask), context_(context) {}

  // Asks now.
  bool wanted() {
    last_ = Clock::now();
    return ask_ != nullptr && ask_(context_) != 0;
  }
  // Asks if the last time is long ago.
  bool wanted_again() { return Clock::now() - last_ >= kPatience && wanted(); }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::chrono::milliseconds kPatience{50};

  int (*ask_)(void*);
  void* context_;
  Clock::time_point last_ = Clock::now();
};

}  // namespace miudo
