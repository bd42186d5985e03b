// The probe for aarch64 with the dot product instructions; only this file is compiled for them.
// Read next: loops.h.
#include <arm_neon.h>

#include "probe/loops.h"

namespace miudo {
namespace {

constexpr int kSums = 16;  // enough to hide the latency of two units

std::uint64_t read(const std::uint8_t* data, std::size_t bytes) {
  uint8x16_t a = vdupq_n_u8(0), b = a, c = a, d = a;
  for (std::size_t i = 0; i < bytes; i += 64) {
    a = vorrq_u8(a, vld1q_u8(data + i));
    b = vorrq_u8(b, vld1q_u8(data + i + 16));
    c = vorrq_u8(c, vld1q_u8(data + i + 32));
    d = vorrq_u8(d, vld1q_u8(data + i + 48));
  }
  return vmaxvq_u8(vorrq_u8(vorrq_u8(a, b), vorrq_u8(c, d)));
}

std::uint64_t int8(std::size_t rounds) {
  int32x4_t sums[kSums];
  int8x16_t x = vdupq_n_s8(1), y = vdupq_n_s8(2);
  for (int i = 0; i < kSums; ++i) sums[i] = vdupq_n_s32(i);
  for (std::size_t round = 0; round < rounds; ++round) {
    __asm__ volatile("" : "+w"(x));
    for (int i = 0; i < kSums; ++i) sums[i] = vdotq_s32(sums[i], x, y);
  }
  for (int i = 1; i < kSums; ++i) sums[0] = vaddq_s32(sums[0], sums[i]);
  return static_cast<std::uint64_t>(vaddvq_s32(sums[0]));
}

std::uint64_t floats(std::size_t rounds) {
  float32x4_t sums[kSums], x = vdupq_n_f32(0.5f);
  const float32x4_t start = vdupq_n_f32(0.25f);
  for (int i = 0; i < kSums; ++i) sums[i] = vdupq_n_f32(static_cast<float>(i));
  for (std::size_t round = 0; round < rounds; ++round) {
    __asm__ volatile("" : "+w"(x));
    for (int i = 0; i < kSums; ++i) sums[i] = vfmaq_f32(sums[i], x, start);
  }
  for (int i = 1; i < kSums; ++i) sums[0] = vaddq_f32(sums[0], sums[i]);
  return static_cast<std::uint64_t>(vaddvq_f32(sums[0]));
}

}  // namespace

extern const ProbeLoops kNeonLoops;
const ProbeLoops kNeonLoops = {"neon dotprod", read, int8, floats, kSums * 16 * 2.0,
                               kSums * 4 * 2.0};

}  // namespace miudo
