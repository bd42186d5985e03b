// Keys and values of past positions, in pages of 32 positions from a pool with a byte budget.
// A page holds all layers; offsets are per layer, and keys and values may differ in head size.
// A layer's part of a page: for each key-value head its keys [head_dim][32], transposed so that a
// vector holds one dimension of many positions, then its values [32][value_stride], then, for
// int8 and int4, the scales of both. How each type lies: kernels/attention.h.
// Not for: who owns which page (core/engine.h). Read next: model/attend.cc.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "model/config.h"
#include "util/buffer.h"

namespace miudo {

using Page = std::uint8_t*;

class CacheLayout {
 public:
  CacheLayout(const ModelConfig& config, CacheType type);

  CacheType type() const { return type_; }
  std::size_t page_bytes() const { return page_bytes_; }
  std::size_t value_stride(std::size_t layer) const { return parts_[layer].value_stride; }
  // A head's tiles in these consecutive pages.
  Tiles keys(std::size_t layer, std::size_t head, const Page* pages, std::size_t count) const {
    const Part& part = parts_[layer];
    const std::size_t at = part.first + head * part.head_bytes;
    return {pages, at, at + part.key_scales, count};
  }
  Tiles values(std::size_t layer, std::size_t head, const Page* pages, std::size_t count) const {
    const Part& part = parts_[layer];
    const std::size_t at = part.first + head * part.head_bytes;
    return {pages, at + part.values, at + part.value_scales, count};
  }

 private:
  // Bytes, but for the stride; the last three count from the head's start.
  struct Part {
    std::size_t first, head_bytes, value_stride, values, key_scales, value_scales;
  };
  CacheType type_;
  std::vector<Part> parts_;
  std::size_t page_bytes_ = 0;
};

constexpr std::size_t pages_for(std::size_t positions) {
  return (positions + kTilePositions - 1) / kTilePositions;
}

// A page may belong to several conversations that begin alike; it is written by one that has it
// alone.
class PagePool {
 public:
  // Throws Failure(kResource) if the budget does not hold one page.
  PagePool(std::size_t page_bytes, std::size_t budget_bytes);

  std::size_t available() const { return most_ - used_; }
  std::size_t used_bytes() const { return used_ * page_bytes_; }
  std::size_t page_bytes() const { return page_bytes_; }
  std::size_t owners(const std::uint8_t* page) const { return owners_.find(page)->second; }

  // The caller has checked available(). Throw std::bad_alloc.
  Page take();
  Page copy(const std::uint8_t* page);
  // One more owner, who gives it back as the others do.
  void share(const std::uint8_t* page) noexcept { ++owners_.find(page)->second; }
  void give_back(Page page) noexcept;

 private:
  std::size_t page_bytes_, most_, used_ = 0;
  std::vector<Buffer<std::uint8_t>> pages_;  // made when first needed, then kept
  std::vector<Page> free_;
  std::unordered_map<const std::uint8_t*, std::size_t> owners_;  // of every page; 0 where free
};

}  // namespace miudo
