// Sparse matrices against dense ones of the same values: every product on every instruction set to
// the last bit, rows read back, what they take in memory; and the door.
#include <bit>
#include <cstring>

#include "core/miudo.h"
#include "kernels/matrix.h"
#include "kernels/rounded.h"
#include "kernels/sparse.h"
#include "test/all_kernels.h"
#include "test/check.h"

namespace miudo {
namespace {

using test::all_kernels;
using test::Noise;

// A matrix in both forms of a file.
struct Both {
  DType type;
  std::size_t rows, cols;
  std::vector<std::uint8_t> sparse, dense;
};

std::uint32_t draw(Noise& noise, std::uint32_t below) {
  return static_cast<std::uint32_t>((noise.next() + 1.0f) * 0.5f * static_cast<float>(below)) % below;
}

// Of 32 columns: at most two of four, or every one with a chance.
std::uint32_t mask_of(Noise& noise, bool pairs) {
  std::uint32_t mask = 0;
  for (std::uint32_t quad = 0; quad < 8; ++quad) {
    // Of four: a sixth with all, else at most one.
    const std::uint32_t any = draw(noise, 6) == 0 ? 15u : draw(noise, 2) << draw(noise, 4);
    const std::uint32_t four = pairs ? 1u << draw(noise, 4) | 1u << draw(noise, 4) : any;
    mask |= (pairs && draw(noise, 9) == 0 ? 0 : four) << (4 * quad);
  }
  return mask;
}

Both both(DType type, std::size_t rows, std::size_t cols, bool pairs) {
  Noise noise(rows * 31 + cols + (pairs ? 7 : 0));
  const bool whole = type == DType::kSparse8;
  const std::size_t groups = rows * (cols / kGroup), block = whole ? 34 : 18;
  std::vector<std::uint8_t> masks(groups * 4), scales(groups * 2), numbers;
  Both out{type, rows, cols, {}, std::vector<std::uint8_t>(groups * block)};
  std::size_t n = 0;
  for (std::size_t g = 0; g < groups; ++g) {
    const std::uint32_t mask = mask_of(noise, pairs);
    std::memcpy(masks.data() + 4 * g, &mask, 4);
    const auto scale = static_cast<std::uint16_t>(0x2C00u + draw(noise, 0x800));
    std::memcpy(scales.data() + 2 * g, &scale, 2);
    std::uint8_t* to = out.dense.data() + g * block;
    std::memcpy(to, &scale, 2);
    std::memset(to + 2, whole ? 0 : 0x88, block - 2);
    for (std::uint32_t left = mask; left != 0; left &= left - 1, ++n) {
      const auto c = static_cast<std::size_t>(std::countr_zero(left));
      // The least and the greatest often, so that sums come near to what they may be.
      const std::uint32_t most = whole ? 255 : 15;
      std::uint32_t number = 1 + draw(noise, most);
      if (draw(noise, 3) == 0) number = whole ? 128 + draw(noise, 2) : 8;
      if (whole) {
        numbers.push_back(static_cast<std::uint8_t>(number));
        to[2 + c] = static_cast<std::uint8_t>(number);
        continue;
      }
      if (n % 2 == 0) numbers.push_back(0);
      numbers.back() = static_cast<std::uint8_t>(numbers.back() | number << (n % 2 * 4));
      std::uint8_t& byte = to[2 + c % 16];
      byte = static_cast<std::uint8_t>(byte ^ number << (c / 16 * 4));
    }
  }
  for (const auto* part : {&masks, &scales, &numbers}) {
    out.sparse.insert(out.sparse.end(), part->begin(), part->end());
  }
  return out;
}

std::vector<float> product(const Kernels& k, const PackedMatrix& w, const Rows& in, bool int8) {
  std::vector<float> out(in.n * w.rows() + 1, 7.0f);
  Buffer<float> bias(round_up(w.rows(), kTileRows));
  const std::vector<float> values = Noise(4).floats(w.rows());
  std::copy(values.begin(), values.end(), bias.data());
  std::vector<std::uint8_t> space(dense_tile_bytes(w.type(), w.cols()));
  const std::size_t half = w.tiles() / 2;
  const auto part = [&](std::size_t begin, std::size_t end) {
    float* to = out.data() + begin * kTileRows;
    if (is_sparse(w.type())) {
      return multiply_sparse(k, w.view(), bias.data(), in, int8, space.data(), to, w.rows(), begin,
                             end);
    }
    const auto at = static_cast<std::size_t>(w.type());
    (int8 ? k.matmul_int8[at] : k.matmul_float[at])(w.view(), bias.data(), in, to, w.rows(), begin,
                                                    end);
  };
  part(0, half);
  part(half, w.tiles());
  CHECK(out.back() >= 7.0f && out.back() <= 7.0f);
  return out;
}

void check_products(const Both& m, std::size_t n) {
  const PackedMatrix dense(dense_of(m.type), m.rows, m.cols, m.dense.data());
  const std::vector<float> x = Noise(n).floats(n * m.cols);
  for (const Kernels* k : all_kernels()) {
    const PackedMatrix sparse(m.type, m.rows, m.cols, m.sparse.data(), k->has_masks());
    Rounded rounded;
    rounded.at_least(n, m.cols);
    const Rows in{x.data(), m.cols, rounded.quants(), n};
    for (std::size_t i = 0; i < n; ++i) {
      k->quantize(x.data() + i * m.cols, m.cols, 0, m.cols / kGroup, i, n, in.quants);
    }
    for (const bool int8 : {false, true}) {
      const std::vector<float> got = product(*k, sparse, in, int8), wanted = product(*k, dense, in, int8);
      CHECK(std::memcmp(got.data(), wanted.data(), got.size() * sizeof(float)) == 0);
    }
  }
}

constexpr DType kTypes[] = {DType::kSparse4, DType::kSparse8};

TEST(sparse_products_have_the_bits_of_dense_ones) {
  for (const DType type : kTypes) {
    for (const bool pairs : {false, true}) {
      for (const std::size_t rows : {1u, 15u, 16u, 17u, 33u}) {
        for (const std::size_t n : {0u, 1u, 2u, 3u, 4u, 8u, 9u, 17u}) {
          check_products(both(type, rows, 96, pairs), n);
        }
      }
      for (const std::size_t groups : {1u, 2u, 5u, 31u}) {
        for (const std::size_t n : {1u, 2u}) check_products(both(type, 18, 32 * groups, pairs), n);
      }
    }
  }
}

// Whether it lies in tiles of masks where these can be multiplied.
bool spreads(const Both& m) {
  return PackedMatrix(m.type, m.rows, m.cols, m.sparse.data(), true).view().masks;
}

// A file that changes while it is read.
TEST(more_numbers_than_were_counted_stay_inside_their_tile) {
  for (const DType type : kTypes) {
    const Both m = both(type, 16, 992, false);
    const std::size_t size = packed_bytes(type, 16, 992, m.sparse.data(), true);
    Buffer<std::uint8_t> room(size + 64);
    PackedMatrix packed(room.data(), type, 16, 992, m.sparse.data(), true);
    std::memset(room.data() + size, 0xA5, 64);
    std::vector<std::uint8_t> changed(16 * 31 * (4 + 2 + 32), 0xFF);
    packed.pack(changed.data(), 0, 1);
    for (std::size_t i = 0; i < 64; ++i) CHECK(room.data()[size + i] == 0xA5);
    std::vector<float> row(992);
    packed.read_row(3, row.data());
  }
}

TEST(products_of_masks_have_the_bits_of_dense_ones) {
  for (const DType type : kTypes) {
    for (const std::size_t rows : {1u, 16u, 33u}) {
      const Both m = both(type, rows, 992, false);
      CHECK(spreads(m));
      for (const std::size_t n : {1u, 2u, 4u, 5u, 8u, 9u, 17u}) check_products(m, n);
    }
  }
}

TEST(sparse_rows_read_back_are_the_dense_ones) {
  for (const DType type : kTypes) {
    for (const bool pairs : {false, true}) {
      const Both m = both(type, 21, 992, pairs);
      CHECK(spreads(m) != pairs);
      const PackedMatrix sparse(type, m.rows, m.cols, m.sparse.data(), true);
      const PackedMatrix dense(dense_of(type), m.rows, m.cols, m.dense.data());
      std::vector<float> got(m.cols), wanted(m.cols);
      for (std::size_t r = 0; r < m.rows; ++r) {
        sparse.read_row(r, got.data());
        dense.read_row(r, wanted.data());
        CHECK(std::memcmp(got.data(), wanted.data(), m.cols * sizeof(float)) == 0);
      }
    }
  }
}

TEST(two_of_four_take_less_memory_and_others_no_more_than_dense_ones) {
  for (const DType type : kTypes) {
    const std::size_t dense = packed_bytes(dense_of(type), 64, 256, nullptr, false);
    const Both two = both(type, 64, 256, true), any = both(type, 64, 256, false);
    const PackedMatrix pairs(type, 64, 256, two.sparse.data());
    CHECK(is_sparse(pairs.type()));
    CHECK(pairs.size_bytes() * 9 == dense * 7 || type == DType::kSparse8);
    CHECK(pairs.size_bytes() * 17 == dense * 11 || type == DType::kSparse4);
    const PackedMatrix others(type, 64, 256, any.sparse.data());
    CHECK(others.type() == dense_of(type));
    CHECK(others.size_bytes() == dense);
    const PackedMatrix masks(type, 64, 256, any.sparse.data(), true);
    CHECK(masks.view().masks);
    const std::vector<std::uint8_t> full(any.sparse.size(), 0xFF);  // masks without a zero
    CHECK(!PackedMatrix(type, 16, 32, full.data(), true).view().masks);
    CHECK(masks.size_bytes() * 4 <= dense * 3);
    CHECK(masks.size_bytes() == packed_bytes(type, 64, 256, any.sparse.data(), true));
  }
}

TEST(sparse_bytes_that_do_not_fit_their_masks_are_refused) {
  const auto linear = [](std::int32_t type, std::int64_t rows, std::int64_t cols,
                         const std::vector<std::uint8_t>& bytes, std::size_t size) {
    const std::vector<float> x(1024);
    float out[64];
    return miudo_linear(static_cast<miudo_dtype>(type), rows, cols, bytes.data(), size, x.data(), 1, 1,
                        out, nullptr);
  };
  for (const DType type : kTypes) {
    const auto number = static_cast<std::int32_t>(type);
    for (const bool pairs : {false, true}) {
      Both m = both(type, 18, 64, pairs);
      const std::size_t size = m.sparse.size();
      m.sparse.push_back(0);
      CHECK(linear(number, 18, 64, m.sparse, size) == MIUDO_OK);
      // Cut anywhere, too long, of another shape.
      for (const std::size_t given : {std::size_t{0}, std::size_t{1}, size / 4, size / 2, size - 1, size + 1}) {
        CHECK(linear(number, 18, 64, m.sparse, given) == MIUDO_MODEL_FILE);
      }
      CHECK(linear(number, 18, 33, m.sparse, size) == MIUDO_MODEL_FILE);
      CHECK(linear(number, 17, 64, m.sparse, size) == MIUDO_MODEL_FILE);
      CHECK(linear(number, 1 << 24, 1 << 19, m.sparse, size) == MIUDO_MODEL_FILE);
      // Masks that promise more numbers than there are.
      std::memset(m.sparse.data(), 0xFF, 64);
      CHECK(linear(number, 18, 64, m.sparse, size) == MIUDO_MODEL_FILE);
    }
  }
  const std::vector<std::uint8_t> some(4096);
  CHECK(linear(kDTypes + kSparseTypes, 1, 32, some, 6) == MIUDO_MODEL_FILE);
}

}  // namespace
}  // namespace miudo
