// The arithmetic of the engine, as one table of functions per instruction set.
// Every output element has one fixed order of accumulation that depends on the shapes alone,
// never on how many rows or positions are computed together.
// For: model/. Not for: threads (the caller splits tiles and rows) or memory.
// Read next: kernels/matmul_inl.h, kernels/vector_inl.h and kernels/attention_inl.h, which are
// compiled once per instruction set on top of simd_*.h, tile_*.h and lanes*.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention.h"
#include "kernels/packed.h"
#include "util/cpu.h"

namespace miudo {

enum class Activation { kSilu = 0, kGelu = 1, kGeluTanh = 2, kRelu = 3 };

constexpr std::size_t kBlockRows = 8;
constexpr float kRoundMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds half to even

// Places that a block of n positions takes: 1, 4 or 8.
static constexpr std::size_t block_width(std::size_t n) {
  return n <= 1 ? n : n <= 4 ? 4 : kBlockRows;
}

// Activations [n, k] as int8 with a scale for every group of 32 columns. Blocks of eight positions
// follow each other; the last is as wide as block_width says. In a block lie, group by group, the
// numbers [width][32]; likewise one scale, the sum of the group's numbers and that of its
// first 16 a position.
struct Quants {
  std::int8_t* values = nullptr;
  float* scales = nullptr;
  std::int32_t *sums = nullptr, *first_sums = nullptr;
};

// n rows of activations [n, k]; `quants` for the int8 products alone.
struct Rows {
  const float* x = nullptr;
  std::size_t stride = 0;  // floats from one row of x to the next
  Quants quants;
  std::size_t n = 0;
};

// out[i][r] = sum_c weight[r][c] * in[i][c] + bias[r] for the rows r of tiles [begin, end), of which
// the first goes to out[i][0]. `bias` of all rows is padded to whole tiles, or null.
using Matmul = void (*)(const Packed& weight, const float* bias, const Rows& in, float* out,
                        std::size_t out_stride, std::size_t begin, std::size_t end);

struct Kernels {
  Isa isa;
  // By DType. Float activations: with blocks dequantised this is the reference. Int8 activations:
  // for blocks alone, null for floats.
  Matmul matmul_float[kDTypes];
  Matmul matmul_int8[kDTypes];
  Matmul matmul_f32_add;  // the sum is added to what out holds
  // Of SPARSE4 and SPARSE8 in tiles of pairs, with int8 activations, and in tiles of masks: null where
  // the processor does not spread bytes.
  Matmul matmul_pairs[kSparseTypes];
  Matmul matmul_masks[kSparseTypes];

  bool has_masks() const { return matmul_masks[0] != nullptr; }

  // Groups [begin, end) of row `row` of n, which has k numbers; x are theirs: scale = max|x| / 127
  // rounded to float16, number = x * (127 / max|x|) rounded half to even.
  void (*quantize)(const float* x, std::size_t k, std::size_t begin, std::size_t end,
                   std::size_t row, std::size_t n, const Quants& to);

  void (*rms_norm)(const float* x, const float* weight, std::size_t n, float eps, float* out);
  // `bias` may be null.
  void (*layer_norm)(const float* x, const float* weight, const float* bias, std::size_t n,
                     float eps, float* out);
  void (*add)(float* x, const float* y, float scale, std::size_t n);  // x += scale * y
  void (*softcap)(float* x, float cap, std::size_t n);                // x = cap * tanh(x / cap)
  void (*activate)(Activation kind, float* x, std::size_t n);
  void (*activate_gated)(Activation kind, float* gate, const float* up, std::size_t n);
  // The greatest of x, which NaN never is; -inf if there is none.
  float (*greatest)(const float* x, std::size_t n);
  // The sum of e^(x - top), NaN if any x is; for the few hundred numbers that float lanes can sum.
  double (*sum_exp)(const float* x, std::size_t n, float top);
  // out = e^((x - top) * inverse) for x <= top, 0 below e^-708 and for NaN.
  void (*weights_of_floats)(const float* x, std::size_t n, double top, double inverse, double* out);
  void (*weights_of_doubles)(const double* x, std::size_t n, double top, double inverse,
                             double* out);

  // Turns number i of x with number i + half by an angle of which these are cosine and sine.
  void (*rotate)(float* x, const float* cos, const float* sin, std::size_t half);
  // In place over s [0, size), size a multiple of 32: e^(s - greatest) inside [begin, end), 0
  // outside.
  Part (*softmax)(float* s, std::size_t begin, std::size_t end, std::size_t size);
  CacheKernels cache[kCacheTypes];  // by CacheType
};

// The table of an instruction set that isa_available(isa).
const Kernels& kernels_for(Isa isa);

}  // namespace miudo
