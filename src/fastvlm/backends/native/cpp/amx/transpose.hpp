// Transposes 16 x 16 numbers of 32 bits in registers.

#pragma once

#include <immintrin.h>

#include "simd.hpp"

namespace fastvlm::FASTVLM_LEVEL {

inline void transpose(__m512i rows[kLanes]) {
  __m512i pairs[kLanes], fours[kLanes];
  UNROLLED
  for (int i = 0; i < kLanes; i += 2) {
    pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  UNROLLED
  for (int i = 0; i < kLanes; i += 4) { // fours[i + k]: in each quarter q of a register, column 4 q + k of four rows
    fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
    fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
    fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
    fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
  }
  UNROLLED
  for (int k = 0; k < 4; ++k) {
    const __m512i even_low = _mm512_shuffle_i32x4(fours[k], fours[k + 4], 0x88);
    const __m512i odd_low = _mm512_shuffle_i32x4(fours[k], fours[k + 4], 0xDD);
    const __m512i even_high = _mm512_shuffle_i32x4(fours[k + 8], fours[k + 12], 0x88);
    const __m512i odd_high = _mm512_shuffle_i32x4(fours[k + 8], fours[k + 12], 0xDD);
    rows[k] = _mm512_shuffle_i32x4(even_low, even_high, 0x88);
    rows[k + 4] = _mm512_shuffle_i32x4(odd_low, odd_high, 0x88);
    rows[k + 8] = _mm512_shuffle_i32x4(even_low, even_high, 0xDD);
    rows[k + 12] = _mm512_shuffle_i32x4(odd_low, odd_high, 0xDD);
  }
}

} // namespace fastvlm::FASTVLM_LEVEL
