// SIMD conversions between bfloat16 and float32. Even and odd lanes of a register become one float32 register each.

#pragma once

#include "../vectors/vectors.hpp"

namespace fastvlm::FASTVLM_LEVEL {

constexpr int kBlock = 2 * kLanes; // bfloat16 numbers in a register: one cache line

inline __mmask32 first_lanes(std::size_t count) {
  return count >= kBlock ? ~__mmask32{0} : (__mmask32{1} << count) - 1;
}

inline __m512 even_lanes(__m512i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)); }

inline __m512 odd_lanes(__m512i x) {
  return _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0xFFFF0000))));
}

// To bfloat16, rounded to nearest, ties to even: the numbers of `low`, then those of `high`.
inline __m512i rounded(__m512 low, __m512 high) {
  const __m512bh halves = _mm512_cvtne2ps_pbh(high, low);
  __m512i bits;
  std::memcpy(&bits, &halves, sizeof bits);
  return bits;
}

// The same, in turn one of either.
struct Interleaved {
  __m512i order;
  Interleaved() {
    alignas(64) Bfloat16 lanes[kBlock];
    for (int i = 0; i < kBlock; ++i) lanes[i] = static_cast<Bfloat16>(i / 2 + (i % 2) * kLanes);
    order = _mm512_load_si512(lanes);
  }
  __m512i operator()(__m512 even, __m512 odd) const {
    return _mm512_permutexvar_epi16(order, rounded(even, odd));
  }
};

} // namespace fastvlm::FASTVLM_LEVEL
