// The probe in plain C++: what the compiler makes of it for the processor that it builds for.
// Read next: loops.h.
#include "probe/loops.h"

namespace miudo {
namespace {

constexpr std::size_t kLanes = 512;  // of the products; they lie in the nearest cache

std::uint64_t read(const std::uint8_t* data, std::size_t bytes) {
  const auto* words = reinterpret_cast<const std::uint64_t*>(data);
  std::uint64_t sums[8] = {};
  for (std::size_t i = 0; i < bytes / sizeof(*words); i += 8) {
    for (std::size_t j = 0; j < 8; ++j) sums[j] |= words[i + j];
  }
  std::uint64_t all = 0;
  for (const std::uint64_t sum : sums) all |= sum;
  return all;
}

std::uint64_t int8(std::size_t rounds) {
  std::int8_t x[kLanes], y[kLanes];
  for (std::size_t i = 0; i < kLanes; ++i) x[i] = 1, y[i] = 2;
  std::uint32_t total = 0;
  for (std::size_t round = 0; round < rounds; ++round) {
    __asm__ volatile("" : : "r"(x), "r"(y) : "memory");
    std::int32_t sum = 0;
    for (std::size_t i = 0; i < kLanes; ++i) sum += x[i] * y[i];
    total += static_cast<std::uint32_t>(sum);
  }
  return total;
}

std::uint64_t floats(std::size_t rounds) {
  float sums[32], x = 0.5f;
  for (std::size_t i = 0; i < 32; ++i) sums[i] = static_cast<float>(i);
  for (std::size_t round = 0; round < rounds; ++round) {
    __asm__ volatile("" : "+m"(x));
    for (float& sum : sums) sum = sum * x + 0.25f;
  }
  float all = 0.0f;
  for (const float sum : sums) all += sum;
  return static_cast<std::uint64_t>(all);
}

}  // namespace

extern const ProbeLoops kPortableLoops;
const ProbeLoops kPortableLoops = {"portable", read, int8, floats, kLanes * 2.0, 32 * 2.0};

}  // namespace miudo
