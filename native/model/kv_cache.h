// Keys and values of past positions, in pages of 32 positions from a pool with a byte budget.
// A page holds all layers; offsets are per layer, and keys and values may differ in head size.
// A layer's part of a page: for each key-value head the keys [head_dim][32], transposed so that a
// vector holds one dimension of 8 positions; then for each head the values [32][value_stride].
// Not for: who owns which page (core/engine.h). Read next: model/attention.cc.
#pragma once

#include <cstddef>
#include <vector>

#include "model/config.h"
#include "util/buffer.h"

namespace miudo {

class CacheLayout {
 public:
  explicit CacheLayout(const ModelConfig& config);

  std::size_t page_floats() const { return page_floats_; }
  std::size_t value_stride(std::size_t layer) const { return parts_[layer].value_stride; }
  // Offsets in a page, in floats.
  std::size_t keys(std::size_t layer, std::size_t head) const {
    return parts_[layer].keys + head * parts_[layer].head_dim * kTilePositions;
  }
  std::size_t values(std::size_t layer, std::size_t head) const {
    return parts_[layer].values + head * kTilePositions * parts_[layer].value_stride;
  }

 private:
  struct Part {
    std::size_t keys, values, head_dim, value_stride;
  };
  std::vector<Part> parts_;
  std::size_t page_floats_ = 0;
};

constexpr std::size_t pages_for(std::size_t positions) {
  return (positions + kTilePositions - 1) / kTilePositions;
}

class PagePool {
 public:
  // Throws Failure(kResource) if the budget does not hold one page.
  PagePool(std::size_t page_floats, std::size_t budget_bytes);

  std::size_t available() const { return most_ - used_; }
  std::size_t used_bytes() const { return used_ * page_bytes_; }
  // The caller has checked available(). Throws std::bad_alloc.
  float* take();
  void give_back(float* page) noexcept;

 private:
  std::size_t page_floats_, page_bytes_, most_, used_ = 0;
  std::vector<Buffer<float>> pages_;  // made when first needed, then kept
  std::vector<float*> free_;
};

}  // namespace miudo
