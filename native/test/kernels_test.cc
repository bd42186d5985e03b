// Kernels of every instruction set against plain loops in double, at awkward sizes.
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/kernels.h"
#include "kernels/matrix.h"
#include "test/check.h"

namespace miudo {
namespace {

using test::Noise;

std::vector<const Kernels*> all_kernels() {
  std::vector<const Kernels*> all;
  for (const Isa isa : kIsas) {
    if (isa_available(isa)) all.push_back(&kernels_for(isa));
  }
  return all;
}

bool near(double a, double b, double tolerance) { return std::abs(a - b) <= tolerance; }

std::vector<std::uint8_t> bytes_of(const std::vector<float>& values) {
  std::vector<std::uint8_t> out(values.size() * 4);
  if (!values.empty()) std::memcpy(out.data(), values.data(), out.size());
  return out;
}

// Q8_0 blocks with scale 1/64 (half 0x2400) and all kinds of quants.
std::vector<std::uint8_t> q8_blocks(std::size_t blocks, Noise& noise) {
  std::vector<std::uint8_t> out;
  for (std::size_t b = 0; b < blocks; ++b) {
    out.insert(out.end(), {0x00, 0x24});
    for (int i = 0; i < 32; ++i) out.push_back(static_cast<std::uint8_t>(128 + 127 * noise.next()));
  }
  return out;
}

// Runs matmul for the tiles [begin, end) in two parts, with sentinels behind the output. What out
// holds before is `held` in the result where matmul adds to it.
void check_matmul(const Kernels& k, Matmul matmul, const PackedMatrix& w, std::size_t n,
                  bool int8, double tolerance, double held = 0.0) {
  Noise noise(w.rows() * 31 + w.cols() + n);
  const std::size_t rows = w.rows(), cols = w.cols();
  const std::vector<float> x = noise.floats(n * cols), bias_values = noise.floats(rows);
  Buffer<float> bias(round_up(rows, kTileRows));
  for (std::size_t r = 0; r < rows; ++r) bias[r] = bias_values[r];
  Buffer<std::int8_t> quants(n * cols + 1);
  Buffer<float> scales(n * cols / kGroup + 1);
  if (int8 && n > 0) k.quantize(x.data(), n * cols, quants.data(), scales.data());
  const Rows in{x.data(), cols, quants.data(), scales.data(), n};
  std::vector<float> out(n * rows + 1, 7.0f);
  matmul(w.view(), bias.data(), in, out.data(), rows, 0, w.tiles() / 2);
  matmul(w.view(), bias.data(), in, out.data(), rows, w.tiles() / 2, w.tiles());
  CHECK(near(out[n * rows], 7.0, 0.0));
  std::vector<float> row(cols);
  bool right = true;
  for (std::size_t r = 0; r < rows; ++r) {
    w.read_row(r, row.data());
    for (std::size_t i = 0; i < n; ++i) {
      double sum = bias_values[r] + held;
      for (std::size_t c = 0; c < cols; ++c) {
        const std::size_t at = i * cols + c;
        const double value =
            int8 ? static_cast<double>(quants[at]) * static_cast<double>(scales[at / kGroup])
                 : static_cast<double>(x[at]);
        sum += static_cast<double>(row[c]) * value;
      }
      right = right && near(out[i * rows + r], sum, tolerance);
    }
  }
  CHECK(right);
}

TEST(matmul_at_awkward_sizes) {
  for (const Kernels* k : all_kernels()) {
    for (const std::size_t rows : {1u, 2u, 15u, 16u, 17u, 31u, 32u, 33u, 67u}) {
      for (const std::size_t n : {0u, 1u, 2u, 3u, 4u, 5u, 6u, 7u, 8u, 11u, 13u}) {
        for (const std::size_t cols : {1u, 7u, 31u, 33u}) {
          Noise noise(rows + cols);
          const PackedMatrix w(DType::kF32, rows, cols, bytes_of(noise.floats(rows * cols)).data());
          check_matmul(*k, k->matmul_f32, w, n, false, 1e-5);
          check_matmul(*k, k->matmul_f32_add, w, n, false, 1e-5, 7.0);
        }
        for (const std::size_t cols : {32u, 64u, 96u}) {
          Noise noise(rows + cols);
          const PackedMatrix w(DType::kQ8_0, rows, cols,
                               q8_blocks(rows * cols / kGroup, noise).data());
          check_matmul(*k, k->matmul_q8_float, w, n, false, 1e-4);
          check_matmul(*k, k->matmul_q8_int8, w, n, true, 1e-4);
        }
      }
    }
  }
}

TEST(packed_rows_read_back) {
  Noise noise(5);
  for (const std::size_t rows : {1u, 16u, 19u}) {
    const std::vector<float> values = noise.floats(rows * 13);
    const PackedMatrix w(DType::kF32, rows, 13, bytes_of(values).data());
    std::vector<float> row(13);
    for (std::size_t r = 0; r < rows; ++r) {
      w.read_row(r, row.data());
      CHECK(std::memcmp(row.data(), values.data() + r * 13, 13 * 4) == 0);
    }
    const std::vector<std::uint8_t> blocks = q8_blocks(rows * 2, noise);
    const PackedMatrix q(DType::kQ8_0, rows, 64, blocks.data());
    std::vector<float> expected(rows * 64), read(64);
    to_float(DType::kQ8_0, blocks.data(), rows * 64, expected.data());
    for (std::size_t r = 0; r < rows; ++r) {
      q.read_row(r, read.data());
      CHECK(std::memcmp(read.data(), expected.data() + r * 64, 64 * 4) == 0);
    }
  }
  CHECK(stored_bytes(DType::kQ8_0, 2, 33) == 0);
  CHECK(stored_bytes(DType::kQ8_0, 2, 64) == 2 * 2 * 34);
}

TEST(quants_round_half_to_even) {
  for (const Kernels* k : all_kernels()) {
    std::vector<float> x(64, 0.0f);
    for (std::size_t i = 0; i < 32; ++i) x[i] = static_cast<float>(i) - 15.5f;
    x[0] = 127.0f;
    std::int8_t quants[64];
    float scales[2];
    k->quantize(x.data(), 64, quants, scales);
    CHECK(scales[0] >= 1.0f && scales[0] <= 1.0f && scales[1] >= 0.0f && scales[1] <= 0.0f);
    CHECK(quants[0] == 127);
    for (std::size_t i = 1; i < 32; ++i) {
      CHECK(quants[i] == static_cast<int>(std::nearbyint(static_cast<double>(x[i]))));
    }
    for (std::size_t i = 32; i < 64; ++i) CHECK(quants[i] == 0);
    x[3] = std::numeric_limits<float>::quiet_NaN();  // whatever comes, it comes without a crash
    x[4] = std::numeric_limits<float>::infinity();
    k->quantize(x.data(), 64, quants, scales);
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
  std::vector<std::int8_t> first(x.size()), quants(x.size());
  std::vector<float> first_scales(kGroups), scales(kGroups);
  kernels_for(Isa::kPortable).quantize(x.data(), x.size(), first.data(), first_scales.data());
  for (const Kernels* k : all_kernels()) {
    k->quantize(x.data(), x.size(), quants.data(), scales.data());
    CHECK(quants == first);
    CHECK(std::memcmp(scales.data(), first_scales.data(), kGroups * sizeof(float)) == 0);
  }
  for (const float scale : scales) CHECK(scale >= 0.0f && scale <= 65504.0f);
  CHECK(scales[0] <= 0.0f && scales[199] >= 65504.0f);
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

TEST(logsumexp_of_small_and_large) {
  for (const Kernels* k : all_kernels()) {
    for (const std::size_t n : {1u, 7u, 511u, 512u, 513u, 5000u}) {
      Noise noise(n);
      std::vector<float> x = noise.floats(n);
      for (float& v : x) v *= 30.0f;
      double total = 0.0;
      for (const float v : x) total += std::exp(static_cast<double>(v));
      CHECK(near(k->logsumexp(x.data(), n), std::log(total), 1e-6));
    }
  }
}

}  // namespace
}  // namespace miudo
