// SIMD e^x and functions based on it.

#pragma once

#include "vectors/vectors.hpp"

namespace fastvlm::FASTVLM_LEVEL {

constexpr float kLog2E = 1.44269504f;

// 2e-7 off relatively; 0 and infinity are not reached (x is held in -87 ... 88), NaN stays.
inline Floats exponential(Floats x) {
  x = smaller(broadcast(88.0f), larger(broadcast(-87.0f), x));
  const Floats power = nearest_integers(x * broadcast(kLog2E));
  Floats rest = subtract_product(x, power, broadcast(0.693359375f)); // ln 2 in two parts
  rest = subtract_product(rest, power, broadcast(-2.12194440e-4f));
  Floats sum = broadcast(1.0f / 720);
  const float coefficients[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  UNROLLED
  for (int i = 0; i < 6; ++i) sum = multiply_add(sum, rest, broadcast(coefficients[i]));
  return times_power_of_2(sum, power);
}

inline Floats silu(Floats x) { return x / (broadcast(1) + exponential(zeros() - x)); }

// 2 to the power of x, at most 127: a polynomial of the fraction, 3e-6 off at most relative to the result, times the power
// that is left. 0 below -126.
inline Floats exp2(Floats x) {
  const Floats whole = nearest_integers(larger(broadcast(-126.0f), x) - broadcast(0.5f));
  const Floats f = larger(broadcast(-126.0f), x) - whole;
  Floats power = multiply_add(f, broadcast(0.013534167f), broadcast(0.05201146f));
  power = multiply_add(power, f, broadcast(0.24144275f));
  power = multiply_add(power, f, broadcast(0.69300383f));
  power = multiply_add(power, f, broadcast(1.0000026f));
  return where_at_least(x, broadcast(-126.0f), times_power_of_2(power, larger(broadcast(-126.0f), whole)), zeros());
}

} // namespace fastvlm::FASTVLM_LEVEL
