// How many of a team's threads are worth having. Threads that meet at barriers lose more than they
// bring where others want the processors too: then one waits for the other's turn to come.
// For: util/team.cc. Not for: moments, of which every machine has some.
// Read next: util/team.cc.
#pragma once

#include <algorithm>

namespace miudo {

class Crowd {
 public:
  explicit Crowd(int threads) : all_(threads), active_(threads) {}

  int active() const { return active_; }

  // At `now` seconds, before a run: all again when the time for fewer is over.
  int before(double now) {
    if (active_ < all_ && now >= until_) active_ = all_;
    return active_;
  }

  // After a run of `active()` workers that took `seconds` until `now`, of which they spent `asleep` at
  // barriers, summed over them. Half as many shall run after a while that lost a fifth, for some
  // time, which grows as long as trying all again does not go well for the same time.
  void after(double now, double seconds, double asleep) {
    constexpr double kWhile = 0.02, kLost = 0.2, kShortest = 0.1, kLongest = 2.0;
    spent_ += seconds;
    lost_ += asleep;
    if (spent_ < kWhile) return;
    if (active_ > 1 && lost_ > kLost * spent_ * active_) {
      active_ = active_ / 2;
      rest_ = std::clamp(2.0 * rest_, kShortest, kLongest);
      until_ = now + rest_;
      calm_ = 0.0;
    } else if (active_ == all_) {
      calm_ += spent_;
      if (calm_ >= rest_) rest_ = 0.0;
    }
    spent_ = lost_ = 0.0;
  }

 private:
  int all_, active_;
  double spent_ = 0.0, lost_ = 0.0;               // of the present while
  double rest_ = 0.0, until_ = 0.0, calm_ = 0.0;  // seconds
};

}  // namespace miudo
