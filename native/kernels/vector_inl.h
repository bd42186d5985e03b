// Norms, activation functions, quantisation. Compiled once per instruction set; see kernels.h.
// Sums run in eight lanes, then the lanes in order, then the odd values: fixed by n alone.
#pragma once

#include <cmath>
#include <limits>

#include "kernels/kernels.h"

namespace miudo {
namespace {

// e^x within 2 units in the last place; 0 below -87, capped above 88.
inline Lanes exp_of(Lanes x) {
  const Lanes clamped = min(max(x, spread(-88.0f)), spread(88.0f));
  const Lanes magic = fma(clamped, spread(1.44269504f), spread(kRoundMagic));
  const Lanes n = sub(magic, spread(kRoundMagic));
  // ln 2 in two parts, so that x - n ln 2 loses nothing.
  Lanes r = fma(n, spread(-0.693145752f), clamped);
  r = fma(n, spread(-1.42860677e-6f), r);
  constexpr float kTaylor[] = {1.0f / 720.0f, 1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f,
                               0.5f,          1.0f,          1.0f};
  Lanes p = spread(1.0f / 5040.0f);
  for (const float c : kTaylor) p = fma(p, r, spread(c));
  return zero_below(mul(p, pow2_of_magic(magic)), x, -87.0f);
}

inline float sum_lanes(F8 v) {
  float lane[8];
  store(lane, v);
  float total = 0.0f;
  for (const float x : lane) total += x;
  return total;
}

// Calls f(Lanes) -> Lanes over x in place; the odd values at the end travel in a padded vector.
template <typename F>
inline void map(float* x, const float* y, std::size_t n, const F& f) {
  std::size_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store_lanes(x + i, f(load_lanes(x + i), load_lanes(y + i)));
  if (i == n) return;
  float a[kWidth] = {}, b[kWidth] = {};
  std::memcpy(a, x + i, (n - i) * sizeof(float));
  std::memcpy(b, y + i, (n - i) * sizeof(float));
  store_lanes(a, f(load_lanes(a), load_lanes(b)));
  std::memcpy(x + i, a, (n - i) * sizeof(float));
}

void add_to(float* x, const float* y, float scale, std::size_t n) {
  map(x, y, n, [=](Lanes a, Lanes b) { return fma(b, spread(scale), a); });
}

inline Lanes sigmoid(Lanes x) {
  const Lanes one = spread(1.0f);
  return div(one, add(one, exp_of(sub(spread(0.0f), x))));
}

inline Lanes gelu(Lanes x) {  // 0.5 x (1 + erf(x / sqrt 2)); erf has no short vector form
  float lane[kWidth];
  store_lanes(lane, x);
  for (float& v : lane) v = 0.5f * v * (1.0f + ::erff(v * 0.707106781f));
  return load_lanes(lane);
}

inline Lanes gelu_tanh(Lanes x) {  // x * sigmoid(2u) = 0.5 x (1 + tanh u)
  const Lanes cube = mul(mul(x, x), x);
  const Lanes u = mul(spread(2.0f * 0.797884561f), fma(spread(0.044715f), cube, x));
  return mul(x, sigmoid(u));
}

// tanh u = 1 - 2 / (e^2u + 1); what is not finite gives NaN, which exp_of would hide.
void softcap(float* x, float cap, std::size_t n) {
  const Lanes one = spread(1.0f), two_over_cap = spread(2.0f / cap);
  map(x, x, n, [=](Lanes a, Lanes) {
    const Lanes tanh = sub(one, div(spread(2.0f), add(exp_of(mul(a, two_over_cap)), one)));
    return fma(a, spread(0.0f), mul(spread(cap), tanh));
  });
}

template <typename Then>
inline void activate_then(Activation kind, float* x, const float* y, std::size_t n, Then then) {
  switch (kind) {
    case Activation::kSilu:
      return map(x, y, n, [&](Lanes a, Lanes b) { return then(mul(a, sigmoid(a)), b); });
    case Activation::kGelu:
      return map(x, y, n, [&](Lanes a, Lanes b) { return then(gelu(a), b); });
    case Activation::kGeluTanh:
      return map(x, y, n, [&](Lanes a, Lanes b) { return then(gelu_tanh(a), b); });
    case Activation::kRelu:
      return map(x, y, n, [&](Lanes a, Lanes b) { return then(max(spread(0.0f), a), b); });
  }
}

void activate(Activation kind, float* x, std::size_t n) {
  activate_then(kind, x, x, n, [](Lanes a, Lanes) { return a; });
}

void activate_gated(Activation kind, float* gate, const float* up, std::size_t n) {
  activate_then(kind, gate, up, n, [](Lanes a, Lanes b) { return mul(a, b); });
}

inline float sum_of(const float* x, std::size_t n) {
  F8 lanes = set1(0.0f);
  std::size_t i = 0;
  for (; i + 8 <= n; i += 8) lanes = add(lanes, load(x + i));
  float total = sum_lanes(lanes);
  for (; i < n; ++i) total += x[i];
  return total;
}

inline float sum_of_squares(const float* x, std::size_t n, float centre) {
  F8 lanes = set1(0.0f);
  const F8 c = set1(centre);
  std::size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const F8 d = sub(load(x + i), c);
    lanes = fma(d, d, lanes);
  }
  float total = sum_lanes(lanes);
  for (; i < n; ++i) total += (x[i] - centre) * (x[i] - centre);
  return total;
}

void rms_norm(const float* x, const float* weight, std::size_t n, float eps, float* out) {
  const float mean = sum_of_squares(x, n, 0.0f) / static_cast<float>(n);
  const float scale = 1.0f / ::sqrtf(mean + eps);
  for (std::size_t i = 0; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

void layer_norm(const float* x, const float* weight, const float* bias, std::size_t n, float eps,
                float* out) {
  const float mean = sum_of(x, n) / static_cast<float>(n);
  const float variance = sum_of_squares(x, n, mean) / static_cast<float>(n);
  const float scale = 1.0f / ::sqrtf(variance + eps);
  for (std::size_t i = 0; i < n; ++i) {
    const float y = (x[i] - mean) * scale * weight[i];
    out[i] = bias == nullptr ? y : y + bias[i];
  }
}

// scale >= 0 in float16 and back, half to even. From the greatest float16 on it is that one: a
// scale is never infinite.
inline float half_scale(float scale) {
  // Float16 below 2^-14 has steps of 2^-24, as float has from 0.5 on.
  if (scale < 0x1.0p-14f) return (scale + 0.5f) - 0.5f;
  std::uint32_t bits;
  std::memcpy(&bits, &scale, sizeof(bits));
  bits = (bits + 0xFFFu + (bits >> 13 & 1u)) & ~0x1FFFu;
  float rounded;
  std::memcpy(&rounded, &bits, sizeof(rounded));
  return rounded < 65504.0f ? rounded : 65504.0f;
}

// What a group of 32 becomes beside its numbers.
struct RoundedGroup {
  float scale;
  std::int32_t first_sum, sum;  // of the first 16 numbers, of all
};

// As ggml's quantize_row_q8_0 rounds on x86, step by step: what llama.cpp multiplies with.
inline RoundedGroup quantize_group(const float* x, std::int8_t* values) {
  Lanes most = spread(0.0f), poison = spread(0.0f);
  for (std::size_t i = 0; i < kGroup; i += kWidth) {
    most = max(abs(load_lanes(x + i)), most);
    poison = fma(load_lanes(x + i), spread(0.0f), poison);
  }
  const float greatest = greatest_lane(most);
  const float scale = half_scale(greatest / 127.0f);
  // A scale of 0 (all zero, or too small for float16) gives zeros; its inverse may overflow.
  const Lanes inverse = spread(scale > 0.0f ? 127.0f / greatest : 0.0f);
  Lanes sums[2];
  for (std::size_t half = 0; half < 2; ++half) {
    sums[half] = spread(0.0f);
    for (std::size_t i = half * 16; i < half * 16 + 16; i += kWidth) {
      const Lanes steps = mul(load_lanes(x + i), inverse);
      const Lanes whole_steps = round_lanes(min(max(steps, spread(-127.0f)), spread(127.0f)));
      sums[half] = add(sums[half], whole_steps);
      store_lanes(values + i, whole_steps);
    }
  }
  const auto first = static_cast<std::int32_t>(sum_exact(sums[0]));
  // Bytes cannot hold NaN: the scale carries it, or a broken model would give numbers.
  return {scale + sum_exact(poison), first, first + static_cast<std::int32_t>(sum_exact(sums[1]))};
}

void quantize(const float* x, std::size_t k, std::size_t begin, std::size_t end, std::size_t row,
              std::size_t n, const Quants& to) {
  const std::size_t start = row / kBlockRows * kBlockRows, groups = k / kGroup;
  const std::size_t width = block_width(n - start < kBlockRows ? n - start : kBlockRows);
  for (std::size_t g = begin; g < end; ++g) {
    const std::size_t at = start * groups + g * width + row - start;
    const RoundedGroup group = quantize_group(x + (g - begin) * kGroup, to.values + at * kGroup);
    to.scales[at] = group.scale;
    to.first_sums[at] = group.first_sum;
    to.sums[at] = group.sum;
  }
}

float greatest(const float* x, std::size_t n) {
  Lanes most = spread(-std::numeric_limits<float>::infinity());
  std::size_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    most = max(load_lanes(x + i), most);  // the second where one is NaN
  }
  float top = greatest_lane(most);
  for (; i < n; ++i) top = x[i] > top ? x[i] : top;
  return top;
}

double sum_exp(const float* x, std::size_t n, float top) {
  F8 lanes = set1(0.0f);
  Lanes poison = spread(0.0f);  // NaN if any is: exp_of would hide it
  std::size_t i = 0;
  for (std::size_t count; i + 8 <= n; i += count) {
    float part[kWidth] = {};
    count = n - i < kWidth ? 8 : kWidth;
    std::memcpy(part, x + i, count * sizeof(float));
    const Lanes v = load_lanes(part);
    poison = fma(v, spread(0.0f), poison);
    store_lanes(part, exp_of(sub(v, spread(top))));
    for (std::size_t j = 0; j < count; j += 8) lanes = add(lanes, load(part + j));
  }
  double total = static_cast<double>(sum_lanes(lanes)) + static_cast<double>(sum_exact(poison));
  for (; i < n; ++i) total += ::exp(static_cast<double>(x[i]) - static_cast<double>(top));
  return total;
}

}  // namespace
}  // namespace miudo
