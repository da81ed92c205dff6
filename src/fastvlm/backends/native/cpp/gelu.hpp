// GELU: x times the normal distribution's Phi(x), a cubic in each of 31 intervals; the product is 1.5e-6 off at most.

#pragma once

#include <algorithm>
#include <cmath>

#include "simd.hpp"

namespace fastvlm::encoder {

constexpr float kIntervalsPerUnit = 2.9f;
constexpr float kLargest = 15.4f / kIntervalsPerUnit; // beyond, Phi is 0 or 1 exactly
constexpr float kMagic = 12582912.0f;                 // 1.5 * 2^23: adding it leaves the nearest integer in the low bits

struct PhiTable {
  // Coefficients of t^0 ... t^3. The interval about i / kIntervalsPerUnit is at i modulo 32.
  alignas(64) float coefficients[4][2 * kLanes];
  PhiTable() {
    for (int i = -15; i <= 16; ++i) {
      double cubic[4] = {i > 0 ? 1.0 : 0.0, 0.0, 0.0, 0.0};
      if (std::abs(i) < 15) fit(i, cubic);
      for (int power = 0; power < 4; ++power) coefficients[power][i & 31] = static_cast<float>(cubic[power]);
    }
  }

 private:
  // Newton's interpolation in Chebyshev's four points, multiplied out.
  static void fit(int i, double cubic[4]) {
    double at[4], divided[4];
    for (int k = 0; k < 4; ++k) {
      at[k] = (i + 0.5 * std::cos((2 * k + 1) * M_PI / 8)) / kIntervalsPerUnit;
      divided[k] = 0.5 * std::erfc(-at[k] * M_SQRT1_2);
    }
    for (int level = 1; level < 4; ++level)
      for (int k = 3; k >= level; --k) divided[k] = (divided[k] - divided[k - 1]) / (at[k] - at[k - level]);
    std::fill(cubic, cubic + 4, 0.0);
    for (int k = 3; k >= 0; --k) { // cubic = cubic * (t - at[k]) + divided[k]
      for (int power = 3; power > 0; --power) cubic[power] = cubic[power - 1] - at[k] * cubic[power];
      cubic[0] = divided[k] - at[k] * cubic[0];
    }
  }
};

class Gelu {
 public:
  Gelu() {
    static const PhiTable table;
    for (int power = 0; power < 4; ++power) {
      low_[power] = _mm512_load_ps(table.coefficients[power]);
      high_[power] = _mm512_load_ps(table.coefficients[power] + kLanes);
    }
  }
  __m512 operator()(__m512 x) const {
    const __m512 t = _mm512_range_ps(x, _mm512_set1_ps(kLargest), 2); // the smaller magnitude, with the sign of x
    const __m512i index = _mm512_castps_si512(
        _mm512_fmadd_ps(t, _mm512_set1_ps(kIntervalsPerUnit), _mm512_set1_ps(kMagic)));
    __m512 phi = _mm512_permutex2var_ps(low_[3], index, high_[3]);
    UNROLLED
    for (int power = 2; power >= 0; --power)
      phi = _mm512_fmadd_ps(phi, t, _mm512_permutex2var_ps(low_[power], index, high_[power]));
    return _mm512_mul_ps(x, phi);
  }

 private:
  __m512 low_[4], high_[4];
};

inline void gelu_run(Bfloat16* data, std::size_t count) {
  const Gelu gelu;
  const Interleaved interleaved;
  for (std::size_t i = 0; i < count; i += kBlock) {
    const __mmask32 mask = first_lanes(count - i);
    const __m512i x = _mm512_maskz_loadu_epi16(mask, data + i);
    _mm512_mask_storeu_epi16(data + i, mask, interleaved(gelu(even_lanes(x)), gelu(odd_lanes(x))));
  }
}

} // namespace fastvlm::encoder
