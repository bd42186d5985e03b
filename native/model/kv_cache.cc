#include "model/kv_cache.h"

#include <string>

#include "util/status.h"

namespace miudo {

CacheLayout::CacheLayout(const ModelConfig& config) {
  for (const LayerConfig& layer : config.layers) {
    Part part;
    part.head_dim = layer.head_dim;
    part.value_stride = round_up(layer.v_head_dim, 8);
    part.keys = page_floats_;
    part.values = part.keys + layer.n_kv_heads * kTilePositions * layer.head_dim;
    page_floats_ = part.values + layer.n_kv_heads * kTilePositions * part.value_stride;
    parts_.push_back(part);
  }
}

PagePool::PagePool(std::size_t page_floats, std::size_t budget_bytes)
    : page_floats_(page_floats),
      page_bytes_(page_floats * sizeof(float)),
      most_(budget_bytes / page_bytes_) {
  if (most_ == 0) {
    fail(Code::kResource, "cache_bytes is " + std::to_string(budget_bytes) +
                              ", one page of 32 positions takes " + std::to_string(page_bytes_));
  }
}

float* PagePool::take() {
  if (free_.empty()) {
    pages_.reserve(pages_.size() + 1);
    free_.reserve(pages_.size() + 1);  // so that give_back never allocates
    pages_.emplace_back(page_floats_);
    free_.push_back(pages_.back().data());
  }
  float* page = free_.back();
  free_.pop_back();
  ++used_;
  return page;
}

void PagePool::give_back(float* page) noexcept {
  free_.push_back(page);
  --used_;
}

}  // namespace miudo
