// A fixed run of numbers that starts on a cache line. Move-only, zeroed when made unless kUnset.
// For: packed weights, cache pages, scratch. Not for: growing containers (std::vector).
#pragma once

#include <cstddef>
#include <cstring>
#include <new>
#include <utility>

#include "util/pages.h"

namespace miudo {

constexpr std::size_t kCacheLine = 64;

constexpr std::size_t round_up(std::size_t n, std::size_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

struct Unset {};
constexpr Unset kUnset;  // the caller writes every number before one is read

template <typename T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(std::size_t size, Unset) : size_(size) {
    if (size == 0) return;
    if (size > static_cast<std::size_t>(-1) / sizeof(T)) throw std::bad_alloc();
    data_ = static_cast<T*>(::operator new(size * sizeof(T), alignment(size)));
    if (alignment(size) != kOnLine) want_large_pages(data_, size * sizeof(T));
  }
  explicit Buffer(std::size_t size) : Buffer(size, kUnset) {
    if (size != 0) std::memset(static_cast<void*>(data_), 0, size * sizeof(T));
  }
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { ::operator delete(data_, alignment(size_)); }

  // Scratch grows and keeps nothing.
  void at_least(std::size_t size) {
    if (size > size_) *this = Buffer(size);
  }

  T* data() { return data_; }
  const T* data() const { return data_; }
  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  T& operator[](std::size_t i) { return data_[i]; }
  const T& operator[](std::size_t i) const { return data_[i]; }

 private:
  static constexpr std::align_val_t kOnLine{kCacheLine};
  static constexpr std::align_val_t alignment(std::size_t size) {
    return size * sizeof(T) < 2 * kLargePage ? kOnLine : std::align_val_t{kLargePage};
  }

  T* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace miudo
