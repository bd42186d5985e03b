// Counter-based random numbers, Philox 4x64-10 (Salmon et al. 2011), equal to miudo/philox.py.
// For: numbers that depend on (seed, request, position) alone. Not for: cryptography.
#pragma once

#include <array>
#include <cstdint>

namespace miudo {

__extension__ using Wide = unsigned __int128;

using PhiloxBlock = std::array<std::uint64_t, 4>;

inline PhiloxBlock philox(PhiloxBlock counter, std::array<std::uint64_t, 2> key) {
  constexpr std::uint64_t kMul0 = 0xD2E7470EE14C6C93, kMul1 = 0xCA5A826395121157;
  constexpr std::uint64_t kWeyl0 = 0x9E3779B97F4A7C15, kWeyl1 = 0xBB67AE8584CAA73B;
  for (int round = 0; round < 10; ++round) {
    const Wide a = static_cast<Wide>(kMul0) * counter[0];
    const Wide b = static_cast<Wide>(kMul1) * counter[2];
    counter = {static_cast<std::uint64_t>(b >> 64) ^ counter[1] ^ key[0],
               static_cast<std::uint64_t>(b),
               static_cast<std::uint64_t>(a >> 64) ^ counter[3] ^ key[1],
               static_cast<std::uint64_t>(a)};
    key[0] += kWeyl0;
    key[1] += kWeyl1;
  }
  return counter;
}

// A double in [0, 1). The counter is position + 1: NumPy advances before it makes a block.
inline double uniform(std::uint64_t seed, std::uint64_t request, std::uint64_t position) {
  const std::uint64_t low = position + 1;
  const PhiloxBlock words = philox({low, low == 0 ? 1u : 0u, 0, 0}, {seed, request});
  return static_cast<double>(words[0] >> 11) * 0x1.0p-53;
}

}  // namespace miudo
