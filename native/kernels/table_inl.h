// The table of an instruction set, from the functions included before.
#pragma once

#include <utility>

#include "kernels/kernels.h"

namespace miudo {
namespace {

template <DType kType>
constexpr Matmul int8_matmul() {
  if constexpr (is_float(kType)) {
    return nullptr;
  } else {
    return matmul_int8<kType>;
  }
}

constexpr Kernels table_for(Isa isa) {
  return [&]<int... kType>(std::integer_sequence<int, kType...>) -> Kernels {
    return {.isa = isa,
            .matmul_float = {matmul_float<static_cast<DType>(kType), false>...},
            .matmul_int8 = {int8_matmul<static_cast<DType>(kType)>()...},
            .matmul_f32_add = matmul_float<DType::kF32, true>,
            .matmul_pairs = {matmul_pairs<DType::kSparse4>, matmul_pairs<DType::kSparse8>},
            .matmul_masks = {},
            .quantize = quantize,
            .rms_norm = rms_norm,
            .layer_norm = layer_norm,
            .add = add_to,
            .softcap = softcap,
            .activate = activate,
            .activate_gated = activate_gated,
            .greatest = greatest,
            .sum_exp = sum_exp,
            .weights_of_floats = weights<float>,
            .weights_of_doubles = weights<double>,
            .rotate = rotate,
            .softmax = softmax,
            .cache = {cache_kernels<float>(), cache_kernels<Half>(), cache_kernels<Bfloat>(),
                      cache_kernels<std::int8_t>(), nibble_cache_kernels()}};
  }(std::make_integer_sequence<int, kDTypes>());
}

}  // namespace
}  // namespace miudo
