// A mutex that says why it cannot be had where waiting would be for ever: in a child of the process
// that made it, where neither its holder nor the workers live on, and in a call out of a call.
// For: whatever owns threads. Use as std::lock_guard's. Read next: core/engine.h.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <thread>

#include "util/status.h"

namespace miudo {

class OwnMutex {
 public:
  // Throws Failure(kRequest) in another process than the one that made it, and on a thread that
  // holds it already.
  void lock() {
    if (elsewhere()) {
      fail(Code::kRequest,
           "the engine was made before this process was forked, and its threads are not here: "
           "make an engine in the child");
    }
    // Only this thread can have written its own id, so that no order is asked for.
    if (holder_.load(std::memory_order_relaxed) == std::this_thread::get_id()) {
      fail(Code::kRequest, "the engine is at work for this thread already: an interrupt function "
                           "or a signal handler must not call it");
    }
    mutex_.lock();
    holder_.store(std::this_thread::get_id(), std::memory_order_relaxed);
  }
  void unlock() {
    holder_.store(std::thread::id(), std::memory_order_relaxed);
    mutex_.unlock();
  }

  bool elsewhere() const { return process_ != getpid(); }

 private:
  std::mutex mutex_;
  std::atomic<std::thread::id> holder_{};
  const pid_t process_ = getpid();
};

}  // namespace miudo
