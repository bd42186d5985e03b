// How many of a team's threads are worth having. Threads that meet at barriers lose more than they
// bring where others want the processors too: then one waits for the other's turn to come.
// For: util/team.cc. Read next: util/team.cc.
#pragma once

#include <algorithm>

namespace miudo {

class Crowd {
 public:
  explicit Crowd(int threads) : all_(threads), active_(threads) {}

  int active() const { return active_; }

  // After a run of `active()` workers in `seconds`, of which they spent `asleep` at barriers, summed
  // over them. Returns how many shall run next: fewer after a run that lost a fifth, and all again
  // after a while, which grows as long as that does not go well.
  int after(double seconds, double asleep) {
    constexpr double kLost = 0.2;
    constexpr int kShortest = 8, kLongest = 256;
    if (active_ > 1 && asleep > kLost * seconds * active_) {
      active_ = active_ / 2;
      patience_ = std::clamp(2 * patience_, kShortest, kLongest);
      left_ = patience_;
    } else if (active_ < all_ && --left_ <= 0) {
      active_ = all_;
    } else if (active_ == all_ && ++calm_ >= kLongest) {
      patience_ = calm_ = 0;
    }
    if (active_ < all_) calm_ = 0;
    return active_;
  }

 private:
  int all_, active_;
  int patience_ = 0, left_ = 0, calm_ = 0;  // in runs
};

}  // namespace miudo
