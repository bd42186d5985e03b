// What libFuzzer made up, read as numbers, and memory whose end a sanitizer knows exactly.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace miudo::fuzz {

class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : data_(data), left_(size) {}

  template <typename T>
  T take() {
    T value{};
    const std::size_t n = left_ < sizeof(T) ? left_ : sizeof(T);
    std::memcpy(&value, data_, n);
    data_ += n;
    left_ -= n;
    return value;
  }
  std::size_t left() const { return left_; }

  // A small number as a rule, now and then any at all.
  std::int64_t size(std::int64_t usual) {
    const auto kind = take<std::uint8_t>();
    return kind == 255 ? take<std::int64_t>() : kind % usual;
  }

  // `n` bytes: what is left of the input, over and over.
  std::unique_ptr<std::uint8_t[]> fill(std::size_t n) {
    auto out = std::make_unique<std::uint8_t[]>(n);
    for (std::size_t i = 0; i < n && left_ != 0; ++i) out[i] = data_[i % left_];
    return out;
  }

 private:
  const std::uint8_t* data_;
  std::size_t left_;
};

// As stored in a file, by miudo_dtype: values and bytes of a block.
struct Block {
  std::int64_t values;
  std::size_t bytes;
};
constexpr Block kBlocks[] = {{1, 4},    {1, 2},    {1, 2},    {32, 34},   {32, 18},  {32, 20},
                             {32, 22},  {32, 24},  {256, 84}, {256, 110}, {256, 144}, {256, 176},
                             {256, 210}, {32, 18}, {256, 136}, {32, 17}};
constexpr int kTypes = 16;

// Stops the run as a finding.
inline void must(bool ok) {
  if (!ok) __builtin_trap();
}

}  // namespace miudo::fuzz
