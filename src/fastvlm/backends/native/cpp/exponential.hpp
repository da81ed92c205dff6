// SIMD e^x and functions based on it.

#pragma once

#include "simd.hpp"

namespace fastvlm {

constexpr float kLog2E = 1.44269504f;

// 2e-7 off relatively; 0 and infinity are not reached (x is held in -87 ... 88), NaN stays.
inline __m512 exponential(__m512 x) {
  x = _mm512_min_ps(_mm512_set1_ps(88.0f), _mm512_max_ps(_mm512_set1_ps(-87.0f), x));
  const __m512 power = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(kLog2E)), 8);
  __m512 rest = _mm512_fnmadd_ps(power, _mm512_set1_ps(0.693359375f), x); // ln 2 in two parts
  rest = _mm512_fnmadd_ps(power, _mm512_set1_ps(-2.12194440e-4f), rest);
  __m512 sum = _mm512_set1_ps(1.0f / 720);
  const float coefficients[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  UNROLLED
  for (int i = 0; i < 6; ++i) sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(coefficients[i]));
  return _mm512_scalef_ps(sum, power);
}

inline __m512 silu(__m512 x) {
  const __m512 below = _mm512_add_ps(_mm512_set1_ps(1), exponential(_mm512_sub_ps(_mm512_setzero_ps(), x)));
  return _mm512_div_ps(x, below);
}

// 2 to the power of x: a polynomial of the fraction, 3e-6 off at most relative to the result, times the power that is
// left. 0 for minus infinity.
inline __m512 exp2(__m512 x) {
  const __m512 f = _mm512_reduce_ps(x, 1); // x minus the integer below it
  __m512 power = _mm512_fmadd_ps(f, _mm512_set1_ps(0.013534167f), _mm512_set1_ps(0.05201146f));
  power = _mm512_fmadd_ps(power, f, _mm512_set1_ps(0.24144275f));
  power = _mm512_fmadd_ps(power, f, _mm512_set1_ps(0.69300383f));
  power = _mm512_fmadd_ps(power, f, _mm512_set1_ps(1.0000026f));
  return _mm512_scalef_ps(power, x);
}

} // namespace fastvlm
