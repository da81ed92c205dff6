// Exact GELU: x times the normal distribution's Phi(x); the product is 1.5e-6 off at most. NaN stays NaN, and minus
// infinity becomes NaN.

#pragma once

#include <algorithm>
#include <cmath>

#include "threads.hpp"
#include "vectors/vectors.hpp"

namespace fastvlm::FASTVLM_LEVEL {

#if defined(__AVX512F__)

// Phi as a cubic in each of 31 intervals, whose coefficients are looked up in registers.

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

#else

// Phi(x) = (1 + erf(x / sqrt 2)) / 2, erf as a quotient of polynomials (the coefficients are those of Eigen's float erf).
class Gelu {
 public:
  Floats operator()(Floats x) const {
    const Floats scaled = x * broadcast(0.70710678f);
    const Floats t = smaller(broadcast(kEdge), larger(broadcast(-kEdge), scaled)), squared = t * t;
    Floats above = broadcast(kAbove[0]), below = broadcast(kBelow[0]);
    UNROLLED
    for (int i = 1; i < 7; ++i) above = multiply_add(above, squared, broadcast(kAbove[i]));
    UNROLLED
    for (int i = 1; i < 5; ++i) below = multiply_add(below, squared, broadcast(kBelow[i]));
    const Floats one = with_sign(broadcast(1), x), magnitude = with_sign(scaled, broadcast(1));
    const Floats erf = where_at_least(magnitude, broadcast(kEdge), one, t * above / below);
    const Floats half = x * broadcast(0.5f);
    return multiply_add(half, erf, half);
  }

 private:
  static constexpr float kEdge = 4.0f; // beyond, erf is 1 or -1 to the last bit
  static constexpr float kAbove[] = {-2.72614225801306e-10f, 2.77068142495902e-08f, -2.10102402082508e-06f,
                                     -5.69250639462346e-05f, -7.34990630326855e-04f, -2.95459980854025e-03f,
                                     -1.60960333262415e-02f};
  static constexpr float kBelow[] = {-1.45660718464996e-05f, -2.13374055278905e-04f, -1.68282697438203e-03f,
                                     -7.37332916720468e-03f, -1.42647390514189e-02f};
};

#endif

template <typename Number>
void gelu(Number* data, std::ptrdiff_t count, int threads) {
  constexpr std::ptrdiff_t kPart = 1 << 16;
  in_parallel((count + kPart - 1) / kPart, threads, [=](std::size_t part) {
    const Gelu function;
    const std::ptrdiff_t first = static_cast<std::ptrdiff_t>(part) * kPart, stop = std::min(first + kPart, count);
    std::ptrdiff_t i = first;
    for (; i + kLanes <= stop; i += kLanes) store(data + i, function(load(data + i)));
    if (i < stop) store(data + i, function(load(data + i, stop - i)), stop - i);
  });
}

} // namespace fastvlm::FASTVLM_LEVEL
