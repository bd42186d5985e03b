// Matrix products of every type and instruction set: against plain sums, against each other, and
// the same alone and in company; rows read back; the door.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/miudo.h"
#include "kernels/kernels.h"
#include "kernels/matrix.h"
#include "kernels/rounded.h"
#include "test/all_kernels.h"
#include "test/check.h"

namespace miudo {
namespace {

using test::all_kernels;
using test::Noise;

std::vector<DType> all_types() {
  std::vector<DType> all;
  for (std::int32_t i = 0; i < kDTypes; ++i) all.push_back(static_cast<DType>(i));
  return all;
}

BlockShape shape_of(DType type) { return kBlocks[static_cast<std::size_t>(type)]; }

// Any bits at all: scales that are infinite or no number too.
std::vector<std::uint8_t> noise_bytes(std::size_t n, Noise& noise) {
  std::vector<std::uint8_t> out(n);
  for (std::uint8_t& byte : out) byte = static_cast<std::uint8_t>(128.0f + 127.9f * noise.next());
  return out;
}

// Values that float16 and its products hold exactly enough: every byte small.
std::vector<std::uint8_t> tame_bytes(std::size_t n, Noise& noise) {
  std::vector<std::uint8_t> out = noise_bytes(n, noise);
  for (std::uint8_t& byte : out) byte &= 0x33u;
  return out;
}

// Activations of n rows and what holds their int8 form.
struct Activations {
  Activations(const Kernels& k, std::size_t rows, std::size_t columns, std::uint64_t seed)
      : n(rows), cols(columns), x(Noise(seed).floats(n * cols)) {
    if (cols % kGroup != 0) return;
    const std::size_t groups = cols / kGroup;
    int8.at_least(n, cols);
    for (std::size_t i = 0; i < n; ++i) {  // in two parts, as two threads do
      k.quantize(x.data() + i * cols, cols, 0, groups / 2, i, n, quants());
      k.quantize(x.data() + i * cols + groups / 2 * kGroup, cols, groups / 2, groups, i, n,
                 quants());
    }
  }

  Quants quants() { return int8.quants(); }
  Rows rows() { return {x.data(), cols, quants(), n}; }
  // What the int8 products multiply with.
  double rounded(std::size_t i, std::size_t c) {
    const Quants held = quants();
    const std::size_t start = i / kBlockRows * kBlockRows, left = std::min(n - start, kBlockRows);
    const std::size_t at = start * (cols / kGroup) + c / kGroup * block_width(left) + i - start;
    const auto number = static_cast<double>(held.values[at * kGroup + c % kGroup]);
    return number * static_cast<double>(held.scales[at]);
  }

  std::size_t n, cols;
  std::vector<float> x;
  Rounded int8;
};

// Both halves of the tiles, with a sentinel behind the output; what it holds before is 7.
std::vector<float> product(Matmul matmul, const PackedMatrix& w, Activations& in,
                           const float* bias) {
  std::vector<float> out(in.n * w.rows() + 1, 7.0f);
  matmul(w.view(), bias, in.rows(), out.data(), w.rows(), 0, w.tiles() / 2);
  const std::size_t half = w.tiles() / 2;
  matmul(w.view(), bias, in.rows(), out.data() + half * kTileRows, w.rows(), half, w.tiles());
  CHECK(out.back() >= 7.0f && out.back() <= 7.0f);
  return out;
}

// Sums of two orders may differ by their rounding, in proportion to what is summed.
void check_sums(const PackedMatrix& w, Activations& in, const std::vector<float>& got,
                const float* bias, bool int8, double held) {
  std::vector<float> row(w.cols());
  bool right = true;
  for (std::size_t r = 0; r < w.rows(); ++r) {
    w.read_row(r, row.data());
    for (std::size_t i = 0; i < in.n; ++i) {
      double sum = static_cast<double>(bias[r]) + held, magnitudes = std::abs(sum);
      for (std::size_t c = 0; c < w.cols(); ++c) {
        const double x = int8 ? in.rounded(i, c) : static_cast<double>(in.x[i * in.cols + c]);
        sum += static_cast<double>(row[c]) * x;
        magnitudes += std::abs(static_cast<double>(row[c]) * x);
      }
      const double off = std::abs(static_cast<double>(got[i * w.rows() + r]) - sum);
      right = right && off <= 4e-6 * magnitudes + 1e-30;
    }
  }
  CHECK(right);
}

std::vector<std::uint8_t> weights_of(DType type, std::size_t rows, std::size_t cols) {
  Noise noise(rows * 31 + cols);
  if (type != DType::kF32) return tame_bytes(stored_bytes(type, rows, cols), noise);
  const std::vector<float> values = noise.floats(rows * cols);
  std::vector<std::uint8_t> bytes(values.size() * 4);
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

void check_product(DType type, std::size_t rows, std::size_t cols, std::size_t n) {
  const PackedMatrix w(type, rows, cols, weights_of(type, rows, cols).data());
  Buffer<float> bias(round_up(rows, kTileRows));
  const std::vector<float> values = Noise(4).floats(rows);
  std::copy(values.begin(), values.end(), bias.data());
  const auto at = static_cast<std::size_t>(type);
  std::vector<float> first[2];
  for (const Kernels* k : all_kernels()) {
    Activations in(*k, n, cols, n);
    for (const bool int8 : {false, true}) {
      const Matmul matmul = int8 ? k->matmul_int8[at] : k->matmul_float[at];
      CHECK(!(int8 && is_float(type)) || matmul == nullptr);
      if (matmul == nullptr) continue;
      const std::vector<float> got = product(matmul, w, in, bias.data());
      check_sums(w, in, got, bias.data(), int8, 0.0);
      // One order of sums, and every product and sum rounded: the same bits everywhere.
      if (first[int8].empty()) first[int8] = got;
      CHECK(std::memcmp(got.data(), first[int8].data(), got.size() * 4) == 0);
    }
    if (type == DType::kF32) {
      const std::vector<float> added = product(k->matmul_f32_add, w, in, bias.data());
      check_sums(w, in, added, bias.data(), false, 7.0);
    }
  }
}

TEST(products_at_awkward_sizes) {
  for (const DType type : all_types()) {
    const std::size_t block = shape_of(type).values;
    for (const std::size_t n : {0u, 1u, 2u, 3u, 4u, 5u, 7u, 8u, 9u, 13u, 16u, 17u}) {
      for (const std::size_t rows : {1u, 15u, 16u, 17u, 33u}) {
        check_product(type, rows, block == 1 ? 7 : block == 32 ? 96 : 256, n);
      }
    }
    for (const std::size_t blocks : {1u, 2u, 5u, 31u}) check_product(type, 18, block * blocks, 3);
  }
  check_product(DType::kQ4_0, 19, 32 * 1500, 19);  // more activations than stay near
}

TEST(a_position_has_the_same_bits_alone_and_in_company) {
  constexpr std::size_t cols = 512, rows = 18, n = 37;
  for (const Kernels* k : all_kernels()) {
    for (const DType type : all_types()) {
      const PackedMatrix w(type, rows, cols, weights_of(type, rows, cols).data());
      const auto at = static_cast<std::size_t>(type);
      for (const Matmul matmul : {k->matmul_float[at], k->matmul_int8[at]}) {
        if (matmul == nullptr) continue;
        Activations all(*k, n, cols, 3);
        const std::vector<float> together = product(matmul, w, all, nullptr);
        for (std::size_t i = 0; i < n; ++i) {
          Activations one(*k, 1, cols, 3);
          one.x.assign(all.x.begin() + static_cast<std::ptrdiff_t>(i * cols),
                       all.x.begin() + static_cast<std::ptrdiff_t>((i + 1) * cols));
          k->quantize(one.x.data(), cols, 0, cols / kGroup, 0, 1, one.quants());
          const std::vector<float> alone = product(matmul, w, one, nullptr);
          CHECK(std::memcmp(alone.data(), together.data() + i * rows, rows * 4) == 0);
        }
      }
    }
  }
}

TEST(any_bits_are_read_without_a_crash_and_alike_on_every_instruction_set) {
  for (const DType type : all_types()) {
    const std::size_t cols = shape_of(type).values * 4, rows = 40;
    Noise noise(9);
    const std::vector<std::uint8_t> bytes = noise_bytes(stored_bytes(type, rows, cols), noise);
    const PackedMatrix w(type, rows, cols, bytes.data());
    std::vector<float> read(cols), expected(rows * cols);
    to_float(type, bytes.data(), rows * cols, expected.data());
    for (std::size_t r = 0; r < rows; ++r) {
      w.read_row(r, read.data());
      CHECK(std::memcmp(read.data(), expected.data() + r * cols, cols * 4) == 0);
    }
    for (const Kernels* k : all_kernels()) {
      const auto at = static_cast<std::size_t>(type);
      for (const Matmul matmul : {k->matmul_float[at], k->matmul_int8[at]}) {
        if (matmul == nullptr || cols % kGroup != 0) continue;
        Activations in(*k, 1, cols, 1);
        const std::vector<float> out = product(matmul, w, in, nullptr);
        for (std::size_t r = 0; r < rows; ++r) {
          bool finite = true;  // what is no number in a row is none in its sum
          for (std::size_t c = 0; c < cols; ++c) finite &= std::isfinite(expected[r * cols + c]);
          CHECK(finite || !std::isfinite(out[r]));
        }
      }
    }
  }
}

TEST(bytes_that_do_not_fit_a_type_are_refused) {
  for (std::int32_t i = -1; i <= kDTypes; ++i) {
    // Not kept in a variable: to load an enum that holds none of its values is undefined.
    const std::int64_t cols = 512;
    const bool known = i >= 0 && i < kDTypes;
    const std::size_t size = known ? stored_bytes(static_cast<DType>(i), 1, 512) : 64;
    const std::vector<std::uint8_t> bytes(size + 1);
    const std::vector<float> x(512);
    float out = 0.0f;
    for (const std::size_t given : {size - 1, size, size + 1}) {
      const miudo_status got =
          miudo_linear(static_cast<miudo_dtype>(i), 1, cols, bytes.data(), given, x.data(), 1, 0, &out, nullptr);
      CHECK(got == (known && given == size ? MIUDO_OK : MIUDO_MODEL_FILE));
    }
    if (known && shape_of(static_cast<DType>(i)).values > 1) {
      CHECK(miudo_linear(static_cast<miudo_dtype>(i), 1, 33, bytes.data(), size, x.data(), 1, 0, &out,
                         nullptr) == MIUDO_MODEL_FILE);
      CHECK(stored_bytes(static_cast<DType>(i), 2, 33) == 0);
    }
  }
}

}  // namespace
}  // namespace miudo
