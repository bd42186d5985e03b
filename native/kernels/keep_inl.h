// How keys and values are rounded into pages. Compiled once per instruction set; see
// kernels/attention.h. The bytes are the same on all of them.
#pragma once

#include <cstring>
#include <type_traits>

#include "kernels/kernels.h"

namespace miudo {
namespace {

// Not std::min: code of one instruction set must not be linked into another.
constexpr std::size_t lesser(std::size_t a, std::size_t b) { return a < b ? a : b; }

template <typename T>
constexpr bool kScaled = std::is_same_v<T, std::int8_t>;

inline void store_lanes(Bfloat* p, Lanes v) {
  float in[kWidth];
  store_lanes(in, v);
  for (std::size_t i = 0; i < kWidth; ++i) p[i] = bfloat_of(in[i]);
}

// Up to 32 numbers as the cache keeps them.
template <typename T>
struct Group {
  T number[kScaleGroup];
  Half scale;
};

template <typename T>
inline Group<T> round_group(const float* x, std::size_t n) {
  float padded[kScaleGroup] = {};
  if (n < kScaleGroup) std::memcpy(padded, x, n * sizeof(float));
  const float* held = n < kScaleGroup ? padded : x;
  Group<T> to;
  to.scale = {0};
  if constexpr (kScaled<T>) {
    float most = 0.0f, poison = 0.0f;
    for (std::size_t i = 0; i < kScaleGroup; ++i) {
      const float v = held[i];
      const float size = v < 0.0f ? -v : v;
      most = size > most ? size : most;
      poison += v * 0.0f;
    }
    // Bytes cannot hold NaN: the scale carries it. One too great for float16 is infinite.
    to.scale = half_of(most / 127.0f + poison);
    // A scale of 0 (all zero, or too small for float16) gives zeros; its inverse may overflow.
    const float inverse = (to.scale.bits & 0x7FFFu) != 0u && most > 0.0f ? 127.0f / most : 0.0f;
    for (std::size_t i = 0; i < kScaleGroup; i += kWidth) {
      const Lanes steps = mul(load_lanes(held + i), spread(inverse));
      const Lanes within = min(max(steps, spread(-127.0f)), spread(127.0f));
      store_lanes(to.number + i, round_lanes(within));
    }
  } else {
    for (std::size_t i = 0; i < kScaleGroup; i += kWidth) {
      store_lanes(to.number + i, load_lanes(held + i));
    }
  }
  return to;
}

// Up to 32 numbers as int4 keeps them.
struct Nibbles {
  std::uint8_t bytes[kHalfGroup];
  Half step, least;
};

// The minimum is rounded first, then the step that leads from it to the greatest, a fifteenth of
// the way; numbers are the nearest steps, half to even.
inline Nibbles round_nibbles(const float* x, std::size_t n) {
  float least = x[0], most = x[0], poison = 0.0f;
  for (std::size_t i = 0; i < n; ++i) {
    least = x[i] < least ? x[i] : least;
    most = x[i] > most ? x[i] : most;
    poison += x[i] * 0.0f;
  }
  Nibbles to;
  to.least = half_of(least + poison);  // four bits cannot hold NaN: the minimum carries it
  const float from = half_to_float(to.least.bits);
  // A minimum that was rounded up may be above all.
  to.step = half_of(most < from ? 0.0f : (most - from) / 15.0f);
  const float step = half_to_float(to.step.bits), inverse = step > 0.0f ? 1.0f / step : 0.0f;
  float held[kScaleGroup];
  for (std::size_t i = 0; i < kScaleGroup; ++i) held[i] = i < n ? x[i] : from;
  std::int8_t number[kScaleGroup];
  for (std::size_t i = 0; i < kScaleGroup; i += kWidth) {
    const Lanes steps = mul(sub(load_lanes(held + i), spread(from)), spread(inverse));
    store_lanes(number + i, round_lanes(min(max(steps, spread(0.0f)), spread(15.0f))));
  }
  for (std::size_t i = 0; i < kHalfGroup; ++i) {
    to.bytes[i] = static_cast<std::uint8_t>(number[i] | number[i + kHalfGroup] << 4);
  }
  return to;
}

inline void keep_scales(const Nibbles& group, std::size_t at, std::size_t slot,
                        std::uint8_t* scales) {
  Half* to = reinterpret_cast<Half*>(scales) + 2 * at + slot;  // two rows of 32 for a group of 32
  to[0] = group.step;
  to[kTilePositions] = group.least;
}

inline void keep_key_nibbles(const float* x, std::size_t n, std::size_t slot,
                             std::uint8_t* numbers, std::uint8_t* scales) {
  for (std::size_t at = 0; at < n; at += kScaleGroup) {
    const std::size_t count = lesser(kScaleGroup, n - at);
    const Nibbles group = round_nibbles(x + at, count);
    std::uint8_t* to = numbers + nibble_bytes(at) * kTilePositions + slot;
    for (std::size_t i = 0; i < nibble_bytes(count); ++i) to[i * kTilePositions] = group.bytes[i];
    keep_scales(group, at, slot, scales);
  }
}

inline void keep_value_nibbles(const float* x, std::size_t n, std::size_t stride,
                               std::size_t slot, std::uint8_t* numbers, std::uint8_t* scales) {
  std::uint8_t* to = numbers + slot * nibble_bytes(stride);
  for (std::size_t at = 0; at < n; at += kScaleGroup) {
    const std::size_t count = lesser(kScaleGroup, n - at);
    const Nibbles group = round_nibbles(x + at, count);
    std::memcpy(to + nibble_bytes(at), group.bytes, nibble_bytes(count));
    keep_scales(group, at, slot, scales);
  }
}

template <typename T>
void keep_key(const float* x, std::size_t n, std::size_t slot, std::uint8_t* numbers,
              std::uint8_t* scales) {
  T* to = reinterpret_cast<T*>(numbers) + slot;
  for (std::size_t at = 0; at < n; at += kScaleGroup) {
    const std::size_t count = lesser(kScaleGroup, n - at);
    const Group<T> group = round_group<T>(x + at, count);
    for (std::size_t i = 0; i < count; ++i) to[(at + i) * kTilePositions] = group.number[i];
    if constexpr (kScaled<T>) reinterpret_cast<Half*>(scales)[at + slot] = group.scale;
  }
}

template <typename T>
void keep_value(const float* x, std::size_t n, std::size_t stride, std::size_t slot,
                std::uint8_t* numbers, std::uint8_t* scales) {
  T* to = reinterpret_cast<T*>(numbers) + slot * stride;
  for (std::size_t at = 0; at < n; at += kScaleGroup) {
    const std::size_t count = lesser(kScaleGroup, n - at);
    const Group<T> group = round_group<T>(x + at, count);
    std::memcpy(to + at, group.number, count * sizeof(T));
    if constexpr (kScaled<T>) reinterpret_cast<Half*>(scales)[at + slot] = group.scale;
  }
}

}  // namespace
}  // namespace miudo
