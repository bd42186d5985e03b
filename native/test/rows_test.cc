// Weights that stay as they lie in files, of every type: products, rows read back, the door.
#include <cmath>
#include <cstring>

#include "core/miudo.h"
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

// Sums of both orders may differ by their rounding, in proportion to what is summed.
bool near(float got, double sum, double of_magnitudes) {
  return std::abs(static_cast<double>(got) - sum) <= 1e-6 * of_magnitudes + 1e-30;
}

void check_rows(const Kernels& k, DType type, std::size_t rows, std::size_t cols, std::size_t n) {
  Noise noise(rows * 31 + cols + n);
  const PackedMatrix w(type, rows, cols,
                       tame_bytes(stored_bytes(type, rows, cols), noise).data());
  const std::vector<float> x = noise.floats(n * cols), bias_values = noise.floats(rows);
  Buffer<float> bias(round_up(rows, kTileRows));
  for (std::size_t r = 0; r < rows; ++r) bias[r] = bias_values[r];
  const Rows in{x.data(), cols, nullptr, nullptr, n};
  std::vector<float> out(n * rows + 1, 7.0f), row(cols);
  k.matmul_rows(w.view(), bias.data(), in, out.data(), rows, 0, w.tiles() / 2);
  k.matmul_rows(w.view(), bias.data(), in, out.data(), rows, w.tiles() / 2, w.tiles());
  CHECK(out[n * rows] >= 7.0f && out[n * rows] <= 7.0f);
  bool right = true;
  for (std::size_t r = 0; r < rows; ++r) {
    w.read_row(r, row.data());
    for (std::size_t i = 0; i < n; ++i) {
      double sum = static_cast<double>(bias_values[r]), magnitudes = std::abs(sum);
      for (std::size_t c = 0; c < cols; ++c) {
        const double product = static_cast<double>(row[c]) * static_cast<double>(x[i * cols + c]);
        sum += product;
        magnitudes += std::abs(product);
      }
      right = right && near(out[i * rows + r], sum, magnitudes);
    }
  }
  CHECK(right);
}

TEST(products_of_rows_at_awkward_sizes) {
  for (const Kernels* k : all_kernels()) {
    for (const DType type : all_types()) {
      if (type == DType::kF32 || type == DType::kQ8_0) continue;  // these have tiles
      const std::size_t block = shape_of(type).values;
      for (const std::size_t rows : {1u, 15u, 16u, 33u}) {
        for (const std::size_t blocks : {1u, 2u, 5u}) check_rows(*k, type, rows, block * blocks, 5);
      }
      check_rows(*k, type, 17, block * 3, 0);
      check_rows(*k, type, 2, block == 1 ? 1043 : 1280, 67);  // more than a stretch, odd columns
    }
  }
}

TEST(a_position_has_the_same_bits_alone_and_in_company) {
  for (const Kernels* k : all_kernels()) {
    for (const DType type : all_types()) {
      const std::size_t cols = 512, rows = 18, n = 37;
      Noise noise(3);
      const PackedMatrix w(type, rows, cols,
                           tame_bytes(stored_bytes(type, rows, cols), noise).data());
      if (w.packing() != Packing::kRows) continue;
      const std::vector<float> x = noise.floats(n * cols);
      std::vector<float> together(n * rows), alone(rows);
      k->matmul_rows(w.view(), nullptr, {x.data(), cols, nullptr, nullptr, n}, together.data(),
                     rows, 0, w.tiles());
      for (std::size_t i = 0; i < n; ++i) {
        k->matmul_rows(w.view(), nullptr, {x.data() + i * cols, cols, nullptr, nullptr, 1},
                       alone.data(), rows, 0, w.tiles());
        CHECK(std::memcmp(alone.data(), together.data() + i * rows, rows * 4) == 0);
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
    if (w.packing() != Packing::kRows) continue;
    std::vector<float> one(cols, 0.0f), out(rows);
    one[cols - 1] = 1.0f;
    for (const Kernels* k : all_kernels()) {
      k->matmul_rows(w.view(), nullptr, {one.data(), cols, nullptr, nullptr, 1}, out.data(), rows,
                     0, w.tiles());
      for (std::size_t r = 0; r < rows; ++r) {
        bool finite = true;  // 0 times infinity is no number, wherever it stands in the row
        for (std::size_t c = 0; c < cols; ++c) finite &= std::isfinite(expected[r * cols + c]);
        const float wanted = expected[(r + 1) * cols - 1];
        CHECK(finite ? out[r] >= wanted && out[r] <= wanted : !std::isfinite(out[r]));
      }
    }
  }
}

TEST(bytes_that_do_not_fit_a_type_are_refused) {
  for (std::int32_t i = -1; i <= kDTypes; ++i) {
    const auto type = static_cast<miudo_dtype>(i);
    const std::int64_t cols = 512;
    const bool known = i >= 0 && i < kDTypes;
    const std::size_t size = known ? stored_bytes(static_cast<DType>(i), 1, 512) : 64;
    const std::vector<std::uint8_t> bytes(size + 1);
    const std::vector<float> x(512);
    float out = 0.0f;
    for (const std::size_t given : {size - 1, size, size + 1}) {
      const miudo_status got =
          miudo_linear(type, 1, cols, bytes.data(), given, x.data(), 1, 0, &out, nullptr);
      CHECK(got == (known && given == size ? MIUDO_OK : MIUDO_MODEL_FILE));
    }
    if (known && shape_of(static_cast<DType>(i)).values > 1) {
      CHECK(miudo_linear(type, 1, 33, bytes.data(), size, x.data(), 1, 0, &out, nullptr) ==
            MIUDO_MODEL_FILE);
      CHECK(stored_bytes(static_cast<DType>(i), 2, 33) == 0);
    }
  }
}

}  // namespace
}  // namespace miudo
