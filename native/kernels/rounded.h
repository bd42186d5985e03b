// Space for activations in the int8 form of kernels.h.
// For: whoever calls its products. Read next: Quants in kernels/kernels.h.
#pragma once

#include "kernels/kernels.h"
#include "util/buffer.h"

namespace miudo {

class Rounded {
 public:
  // For n rows of k numbers, whatever was in it before.
  void at_least(std::size_t n, std::size_t k) {
    const std::size_t numbers = round_up(n, kBlockRows) * k, groups = numbers / kGroup;
    values_.at_least(numbers);
    scales_.at_least(groups);
    sums_.at_least(groups);
    first_sums_.at_least(groups);
  }

  Quants quants() { return {values_.data(), scales_.data(), sums_.data(), first_sums_.data()}; }

 private:
  Buffer<std::int8_t> values_;
  Buffer<float> scales_;
  Buffer<std::int32_t> sums_, first_sums_;
};

}  // namespace miudo
