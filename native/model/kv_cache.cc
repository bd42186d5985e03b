#include "model/kv_cache.h"

#include <cstring>
#include <string>
#include <utility>

#include "kernels/half.h"
#include "util/status.h"

namespace miudo {

namespace {

constexpr std::size_t kNumberBytes[kCacheTypes] = {4, 2, 2, 1};

// Of the scales of a tile whose rows or columns are this wide.
std::size_t scale_bytes(CacheType type, std::size_t width) {
  if (type != CacheType::kInt8) return 0;
  return round_up(width, kScaleGroup) / kScaleGroup * kTilePositions * sizeof(Half);
}

}  // namespace

CacheLayout::CacheLayout(const ModelConfig& config, CacheType type) : type_(type) {
  const std::size_t tile_bytes = kTilePositions * kNumberBytes[static_cast<int>(type)];
  for (const LayerConfig& layer : config.layers) {
    Part part;
    part.first = page_bytes_;
    part.value_stride = round_up(layer.v_head_dim, kValueMultiple);
    part.values = layer.head_dim * tile_bytes;
    part.key_scales = part.values + part.value_stride * tile_bytes;
    part.value_scales = part.key_scales + scale_bytes(type, layer.head_dim);
    part.head_bytes = part.value_scales + scale_bytes(type, part.value_stride);
    page_bytes_ += layer.n_kv_heads * part.head_bytes;
    parts_.push_back(part);
  }
}

PagePool::PagePool(std::size_t page_bytes, std::size_t budget_bytes)
    : page_bytes_(page_bytes), most_(budget_bytes / page_bytes_) {
  if (most_ == 0) {
    fail(Code::kResource, "cache_bytes is " + std::to_string(budget_bytes) +
                              ", one page of 32 positions takes " + std::to_string(page_bytes_));
  }
}

Page PagePool::take() {
  if (free_.empty()) {
    pages_.reserve(pages_.size() + 1);
    free_.reserve(pages_.size() + 1);  // so that give_back never allocates
    Buffer<std::uint8_t> made(page_bytes_);
    owners_.emplace(made.data(), 0);
    free_.push_back(made.data());
    pages_.push_back(std::move(made));
  }
  const Page page = free_.back();
  free_.pop_back();
  owners_.find(page)->second = 1;
  ++used_;
  return page;
}

Page PagePool::copy(const std::uint8_t* page) {
  const Page made = take();
  std::memcpy(made, page, page_bytes_);
  return made;
}

void PagePool::give_back(Page page) noexcept {
  if (--owners_.find(page)->second != 0) return;
  free_.push_back(page);
  --used_;
}

}  // namespace miudo
