#include "model/kv_cache.h"

#include <cstring>
#include <string>
#include <utility>

#include "kernels/half.h"
#include "util/status.h"

namespace miudo {

namespace {

// Of the numbers of a tile whose rows or columns are this wide.
std::size_t number_bytes(CacheType type, std::size_t width) {
  switch (type) {
    case CacheType::kF32: return width * kTilePositions * sizeof(float);
    case CacheType::kF16:
    case CacheType::kBF16: return width * kTilePositions * sizeof(Half);
    case CacheType::kInt8: return width * kTilePositions;
    case CacheType::kInt4: return nibble_bytes(width) * kTilePositions;
  }
  return 0;
}

// Of its scales: int8 has one a group and position, int4 a step and a minimum.
std::size_t scale_bytes(CacheType type, std::size_t width) {
  const std::size_t each = type == CacheType::kInt8 ? 1 : type == CacheType::kInt4 ? 2 : 0;
  return each * (round_up(width, kScaleGroup) / kScaleGroup) * kTilePositions * sizeof(Half);
}

}  // namespace

CacheLayout::CacheLayout(const ModelConfig& config, CacheType type) : type_(type) {
  for (const LayerConfig& layer : config.layers) {
    Part part;
    part.first = page_bytes_;
    part.value_stride = round_up(layer.v_head_dim, kValueMultiple);
    part.values = number_bytes(type, layer.head_dim);
    part.key_scales = part.values + number_bytes(type, part.value_stride);
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
