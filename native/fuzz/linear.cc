// miudo_linear on any type, shape and bytes: it refuses or computes, on every path of the machine,
// and a row's bits do not depend on the rows beside it.
#include <cmath>
#include <cstdlib>

#include "core/miudo.h"
#include "fuzz/input.h"

using miudo::fuzz::Input;
using miudo::fuzz::kBlocks;
using miudo::fuzz::kTypes;
using miudo::fuzz::must;

namespace {

struct Product {
  int type;
  std::int64_t rows, cols;
  const std::uint8_t* bytes;
  std::size_t size;
  int int8;

  miudo_status of(const float* x, std::size_t n, float* out) const {
    return miudo_linear(static_cast<miudo_dtype>(type), rows, cols, bytes, size, x, n, int8, out,
                        nullptr);
  }
};

bool same(const float* a, const float* b, std::size_t n) {
  for (std::size_t i = 0; i < n; ++i) {
    if (std::isnan(a[i]) ? !std::isnan(b[i]) : std::memcmp(a + i, b + i, sizeof(float)) != 0) {
      return false;
    }
  }
  return true;
}

void compute(const Product& product, Input& input, std::size_t n) {
  const auto rows = static_cast<std::size_t>(product.rows);
  const auto cols = static_cast<std::size_t>(product.cols);
  const auto raw = input.fill(n * cols * sizeof(float));
  std::vector<float> x(n * cols), out(n * rows), alone(rows);
  x.shrink_to_fit();
  if (!x.empty()) std::memcpy(x.data(), raw.get(), n * cols * sizeof(float));
  must(product.of(x.data(), n, out.data()) == MIUDO_OK);
  for (std::size_t i = 0; i < n; i += 3) {
    must(product.of(x.data() + i * cols, 1, alone.data()) == MIUDO_OK);
    must(same(alone.data(), out.data() + i * rows, rows));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const char* const kPaths[] = {"", "portable", "avx2", "neon"};
  Input input(data, size);
  const auto how = input.take<std::uint8_t>();
  // A name that this machine has not is refused, which is found out below.
  setenv("MIUDO_ISA", kPaths[how % 4], 1);
  Product product = {};
  const auto kind = input.take<std::uint8_t>();
  product.type = kind == 255 ? input.take<std::int32_t>() : kind % kTypes;
  product.int8 = (how >> 2) & 1;
  product.rows = input.size(70);
  const bool known = product.type >= 0 && product.type < kTypes;
  const std::int64_t values = known ? kBlocks[product.type].values : 1;
  const std::int64_t blocks = input.size(values == 1 ? 80 : 4);
  product.cols = kind % 7 == 6 || blocks > 80 || blocks < 0 ? blocks : blocks * values;
  const auto n = static_cast<std::size_t>(input.take<std::uint8_t>() % 20);
  const bool whole = known && product.rows > 0 && product.rows < 70 && product.cols > 0 &&
                     product.cols <= 80 * values && product.cols % values == 0;
  product.size = whole ? static_cast<std::size_t>(product.rows * (product.cols / values)) *
                             kBlocks[product.type].bytes
                       : input.take<std::uint16_t>();
  const bool cut = whole && kind % 5 == 4;
  if (cut) --product.size;
  const auto bytes = input.fill(product.size);
  product.bytes = bytes.get();
  float few[2] = {};
  if (!whole || cut) {
    // Of sparse types masks say how many bytes there are.
    const bool sparse = product.type == MIUDO_SPARSE4 || product.type == MIUDO_SPARSE8;
    must(product.of(few, 0, few) != MIUDO_OK || sparse);
  } else if (product.of(few, 0, few) == MIUDO_OK) {
    if (n != 0) compute(product, input, n);
  } else {
    must(how % 4 > 1);
  }
  return 0;
}
