// Kernels on vectors and tiles of attention, of every instruction set, against plain loops in
// double, at awkward sizes. For matrix products see products_test.cc.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/reading.h"
#include "kernels/kernels.h"
#include "test/all_kernels.h"
#include "test/check.h"

namespace miudo {
namespace {

using test::all_kernels;
using test::Noise;

bool near(double a, double b, double tolerance) { return std::abs(a - b) <= tolerance; }

// One row rounded, group by group.
struct RoundedRow {
  RoundedRow(const Kernels& k, const std::vector<float>& x)
      : values(x.size()), scales(x.size() / kGroup), sums(scales.size()), firsts(scales.size()) {
    k.quantize(x.data(), x.size(), 0, scales.size(), 0, 1,
               {values.data(), scales.data(), sums.data(), firsts.data()});
  }
  std::vector<std::int8_t> values;
  std::vector<float> scales;
  std::vector<std::int32_t> sums, firsts;
};

TEST(quants_round_half_to_even) {
  for (const Kernels* k : all_kernels()) {
    std::vector<float> x(64, 0.0f);
    for (std::size_t i = 0; i < 32; ++i) x[i] = static_cast<float>(i) - 15.5f;
    x[0] = 127.0f;
    const RoundedRow r(*k, x);
    CHECK(r.scales[0] >= 1.0f && r.scales[0] <= 1.0f);
    CHECK(r.scales[1] >= 0.0f && r.scales[1] <= 0.0f);
    CHECK(r.values[0] == 127);
    int first = 127, sum = 127;
    for (std::size_t i = 1; i < 32; ++i) {
      const int wanted = static_cast<int>(std::nearbyint(static_cast<double>(x[i])));
      CHECK(r.values[i] == wanted);
      sum += wanted;
      if (i < 16) first += wanted;
    }
    CHECK(r.sums[0] == sum && r.firsts[0] == first && r.sums[1] == 0);
    for (std::size_t i = 32; i < 64; ++i) CHECK(r.values[i] == 0);
    x[3] = std::numeric_limits<float>::quiet_NaN();
    x[4] = std::numeric_limits<float>::infinity();
    CHECK(std::isnan(RoundedRow(*k, x).scales[0]));
  }
}

// Groups of every size, from scales that float16 has not to the next ones that it has not.
TEST(quants_have_the_same_bits_on_every_instruction_set) {
  constexpr std::size_t kGroups = 600;
  Noise noise(11);
  std::vector<float> x = noise.floats(kGroups * kGroup);
  for (std::size_t i = 0; i < x.size(); ++i) {
    x[i] *= std::ldexp(1.0f, static_cast<int>(i / kGroup % 200) - 100);
  }
  const RoundedRow first(kernels_for(Isa::kPortable), x);
  for (const Kernels* k : all_kernels()) {
    const RoundedRow r(*k, x);
    CHECK(r.values == first.values && r.sums == first.sums && r.firsts == first.firsts);
    CHECK(std::memcmp(r.scales.data(), first.scales.data(), kGroups * sizeof(float)) == 0);
  }
  for (const float scale : first.scales) CHECK(scale >= 0.0f && scale <= 65504.0f);
  CHECK(first.scales[0] <= 0.0f && first.scales[199] >= 65504.0f);
}

double gelu(double x) { return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0))); }
double gelu_tanh(double x) {
  return 0.5 * x * (1.0 + std::tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
}
double silu(double x) { return x / (1.0 + std::exp(-x)); }

TEST(activations) {
  for (const Kernels* k : all_kernels()) {
    for (const std::size_t n : {0u, 1u, 7u, 8u, 9u, 31u, 257u}) {
      Noise noise(n);
      std::vector<float> x = noise.floats(n), up = noise.floats(n);
      for (float& v : x) v *= 12.0f;
      std::vector<float> a = x, b = x, c = x, d = x;
      k->activate(Activation::kSilu, a.data(), n);
      k->activate(Activation::kGelu, b.data(), n);
      k->activate(Activation::kGeluTanh, c.data(), n);
      k->activate_gated(Activation::kRelu, d.data(), up.data(), n);
      for (std::size_t i = 0; i < n; ++i) {
        const double v = static_cast<double>(x[i]);
        CHECK(near(a[i], silu(v), 2e-6));
        CHECK(near(b[i], gelu(v), 2e-6));
        CHECK(near(c[i], gelu_tanh(v), 2e-6));
        CHECK(near(d[i], (v > 0.0 ? v : 0.0) * static_cast<double>(up[i]), 1e-6));
      }
    }
    std::vector<float> far = {-1e30f, -200.0f, -89.0f, 0.0f, 89.0f, 200.0f, 1e30f};
    k->activate(Activation::kSilu, far.data(), far.size());
    CHECK(near(far[1], 0.0, 1e-30) && near(far[3], 0.0, 0.0) && near(far[5], 200.0, 0.0));
  }
}

TEST(norms) {
  for (const Kernels* k : all_kernels()) {
    for (const std::size_t n : {1u, 7u, 8u, 17u, 256u}) {
      Noise noise(n);
      const std::vector<float> x = noise.floats(n), w = noise.floats(n), b = noise.floats(n);
      double mean = 0.0, squares = 0.0, variance = 0.0;
      for (const float v : x) mean += static_cast<double>(v) / static_cast<double>(n);
      for (const float v : x) {
        const double e = static_cast<double>(v);
        squares += e * e / static_cast<double>(n);
        variance += (e - mean) * (e - mean) / static_cast<double>(n);
      }
      std::vector<float> rms(n), layer(n), plain(n);
      k->rms_norm(x.data(), w.data(), n, 1e-5f, rms.data());
      k->layer_norm(x.data(), w.data(), b.data(), n, 1e-5f, layer.data());
      k->layer_norm(x.data(), w.data(), nullptr, n, 1e-5f, plain.data());
      for (std::size_t i = 0; i < n; ++i) {
        const double v = static_cast<double>(x[i]), weight = static_cast<double>(w[i]);
        const double centred = (v - mean) / std::sqrt(variance + 1e-5) * weight;
        CHECK(near(rms[i], v / std::sqrt(squares + 1e-5) * weight, 1e-5));
        CHECK(near(plain[i], centred, 1e-5));
        CHECK(near(layer[i], centred + static_cast<double>(b[i]), 1e-5));
      }
    }
  }
}

TEST(sums_and_softcaps) {
  for (const Kernels* k : all_kernels()) {
    for (const std::size_t n : {1u, 7u, 8u, 17u}) {
      Noise noise(n);
      const std::vector<float> x = noise.floats(n), y = noise.floats(n);
      std::vector<float> plain = x, scaled = x, capped(n);
      k->add(plain.data(), y.data(), 1.0f, n);
      k->add(scaled.data(), y.data(), 0.3f, n);
      for (std::size_t i = 0; i < n; ++i) capped[i] = 40.0f * x[i] * (i % 2 == 0 ? 1.0f : 9.0f);
      const std::vector<float> before = capped;
      k->softcap(capped.data(), 30.0f, n);
      for (std::size_t i = 0; i < n; ++i) {
        CHECK(near(plain[i], static_cast<double>(x[i] + y[i]), 0.0));
        CHECK(near(scaled[i], static_cast<double>(x[i]) + 0.3 * static_cast<double>(y[i]), 1e-6));
        CHECK(near(capped[i], 30.0 * std::tanh(static_cast<double>(before[i]) / 30.0), 1e-5));
      }
      capped[n - 1] = std::nanf("");
      k->softcap(capped.data(), 30.0f, n);
      CHECK(std::isnan(capped[n - 1]));
    }
  }
}

TEST(best_and_logsumexp_of_small_and_large) {
  for (const Kernels* k : all_kernels()) {
    for (const std::size_t n : {1u, 7u, 511u, 512u, 513u, 5000u}) {
      Noise noise(n);
      std::vector<float> x = noise.floats(n);
      for (float& v : x) v *= 30.0f;
      double total = 0.0;
      for (const float v : x) total += std::exp(static_cast<double>(v));
      std::vector<Stretch> space(stretches_of(n));
      Reading r = read_row(*k, x, space);
      CHECK(near(r.logsumexp, std::log(total), 1e-6));
      CHECK(x.begin() + static_cast<std::ptrdiff_t>(r.best) == std::max_element(x.begin(), x.end()));
      x[n / 2] = x[n - 1] = 40.0f;  // the first of equals
      CHECK(read_row(*k, x, space).best == n / 2);
      x[n / 2] = std::nanf("");  // which is never the best, and spoils the sum
      r = read_row(*k, x, space);
      CHECK(std::isnan(r.logsumexp) && (n == 1 || r.best == n - 1));
    }
  }
}

TEST(weights_of_ids_are_exponentials_and_alike_on_every_instruction_set) {
  constexpr double kTop = 7.25, kInverse = 1.0 / 0.7;
  std::vector<float> x = Noise(5).floats(1003);
  for (float& value : x) value = static_cast<float>(kTop) - 40.0f * std::abs(value);
  x[0] = static_cast<float>(kTop);
  x[1] = -std::numeric_limits<float>::infinity();
  x[2] = std::nanf("");
  x[3] = -470.0f;  // less than e^-680
  x[4] = -500.0f;  // less than e^-708
  const std::vector<double> wide(x.begin(), x.end());
  std::vector<double> first(x.size());
  kernels_for(Isa::kPortable).weights_of_floats(x.data(), x.size(), kTop, kInverse, first.data());
  for (std::size_t i = 5; i < x.size(); ++i) {
    const double wanted = std::exp((wide[i] - kTop) * kInverse);
    CHECK(near(first[i] / wanted, 1.0, 5e-16));
  }
  CHECK(first[0] >= 1.0 && first[0] <= 1.0 && first[3] > 0.0 && first[3] < 1e-290);
  for (const std::size_t none : {1u, 2u, 4u}) CHECK(first[none] >= 0.0 && first[none] <= 0.0);
  for (const Kernels* k : all_kernels()) {
    std::vector<double> of_floats(x.size()), of_doubles(x.size());
    k->weights_of_floats(x.data(), x.size(), kTop, kInverse, of_floats.data());
    k->weights_of_doubles(wide.data(), x.size(), kTop, kInverse, of_doubles.data());
    CHECK(of_floats == first && of_doubles == first);
  }
}

}  // namespace
}  // namespace miudo
