// What ids weigh in a draw: e^((x - top) / temperature), in double, by plain products and sums in a
// fixed order, which NumPy can follow to the last bit. Compiled once per instruction set; the
// compiler makes vectors of the loop. See kernels.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace miudo {
namespace {

// e^x for x <= 0, within two units in the last place; 0 below -708 and for NaN.
inline double exp_of(double given) {
  constexpr double kLeast = -708.0;
  constexpr double kMagic = 0x1.8p52;  // adding it rounds to whole numbers, half to even
  constexpr double kFactorials[] = {39916800.0, 3628800.0, 362880.0, 40320.0, 5040.0, 720.0,
                                    120.0,      24.0,      6.0,      2.0,     1.0,    1.0};
  // As bits, which need no branch: of negative numbers the least have the greatest.
  const auto bits = __builtin_bit_cast(std::uint64_t, given);
  constexpr auto kLeastBits = __builtin_bit_cast(std::uint64_t, kLeast);
  const double x = __builtin_bit_cast(double, bits < kLeastBits ? bits : kLeastBits);
  const double magic = x * 0x1.71547652b82fep0 + kMagic, n = magic - kMagic;
  // ln 2 in two parts, so that x - n ln 2 loses nothing.
  const double r = (x - n * 0x1.62e42fee00000p-1) - n * 0x1.a39ef35793c76p-33;
  double p = 1.0 / 479001600.0;
  for (const double factorial : kFactorials) p = p * r + 1.0 / factorial;
  // The low bits of magic are n; what stands above them falls out of the shift.
  const auto power = (__builtin_bit_cast(std::uint64_t, magic) + 1023u) << 52;
  const auto kept = std::uint64_t{0} - static_cast<std::uint64_t>(given >= kLeast);
  const double e = p * __builtin_bit_cast(double, power);
  return __builtin_bit_cast(double, __builtin_bit_cast(std::uint64_t, e) & kept);
}

template <typename T>
void weights(const T* x, std::size_t n, double top, double inverse, double* out) {
  for (std::size_t i = 0; i < n; ++i) {
    out[i] = exp_of((static_cast<double>(x[i]) - top) * inverse);
  }
}

}  // namespace
}  // namespace miudo
