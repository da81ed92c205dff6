// AVX-VNNI in plain C++ on top of the compiler's AVX2: for tests on CPUs without it.

#pragma once

#undef __AVXVNNI__ // the compiler's header would define what it may not use
#include_next <immintrin.h>
#define __AVXVNNI__ 1

#include <cstdint>
#include <cstring>

namespace emulated {

inline __m256i dot_of_bytes(__m256i sums, __m256i a, __m256i b) {
  std::uint8_t left[32];
  std::int8_t right[32];
  std::uint32_t result[8];
  std::memcpy(left, &a, sizeof left);
  std::memcpy(right, &b, sizeof right);
  std::memcpy(result, &sums, sizeof result);
  for (int i = 0; i < 32; ++i) result[i / 4] += static_cast<std::uint32_t>(left[i] * right[i]);
  std::memcpy(&sums, result, sizeof sums);
  return sums;
}

} // namespace emulated

#define _mm256_dpbusd_avx_epi32 emulated::dot_of_bytes
