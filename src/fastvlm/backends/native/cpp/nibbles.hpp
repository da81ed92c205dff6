// Rows times 4-bit weights as they are stored: 32 inputs of 64 outputs at a time.
//
// A row is rounded to two terms of few bits each, whose products with 0 ... 15 are added up exactly. How many bits, and how
// terms lie in memory, depends on what the level multiplies fast; NibbleRow and multiply_nibbles are the level's.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "linear_weights.hpp"
#include "vectors/vectors.hpp"

namespace fastvlm::FASTVLM_LEVEL {

constexpr std::ptrdiff_t kNibbleInputs = 32;
constexpr int kNibbleVectors = kOutputs / kLanes;

#if defined(__AVX512F__)

// 4-bit values as bytes: 4 inputs of 16 outputs in a register, in the order of outputs.
struct Nibbles {
  __m512i order;
  Nibbles() {
    // Two inputs of 32 bytes each become pairs; the order is such that unpacking two of them gives outputs in order.
    alignas(64) std::uint8_t bytes[64];
    for (int i = 0; i < 64; ++i) {
      const int lane = i / 16, half = i / 8 % 2, output = lane * 4 + half * 16 + i % 8 / 2;
      bytes[i] = static_cast<std::uint8_t>(output + i % 2 * 32);
    }
    order = _mm512_load_si512(bytes);
  }
  // Of 4 inputs, 128 bytes: outputs 0 to 15 and 16 to 31 in the low halves of bytes, 32 to 47 and 48 to 63 in the high.
  void pair(const std::uint8_t* packed, __m512i& left, __m512i& right) const {
    const __m512i first = _mm512_permutexvar_epi8(order, _mm512_loadu_si512(packed));
    const __m512i second = _mm512_permutexvar_epi8(order, _mm512_loadu_si512(packed + 64));
    left = _mm512_unpacklo_epi16(first, second);
    right = _mm512_unpackhi_epi16(first, second);
  }
};

inline __m512i low_halves(__m512i bytes) { return _mm512_and_si512(bytes, _mm512_set1_epi8(15)); }
inline __m512i high_halves(__m512i bytes) { return low_halves(_mm512_srli_epi16(bytes, 4)); }

// Fours of inputs by vpdpbusd.
struct NibbleRow {
  static constexpr int kLargest = 127, kSteps = 254; // a row is scale * (first + second / kSteps)
  static constexpr int kInputBytes = 2;              // four first terms before four second ones

  static void put(std::int8_t* row, std::ptrdiff_t input, std::int8_t first, std::int8_t second) {
    std::int8_t* four = row + input / 4 * 8 + input % 4;
    four[0] = first;
    four[4] = second;
  }
};

// sums = values 0 ... 15 of 32 of the 64 outputs (kIsHigh: the second half) times kRows rows, times kSteps.
template <int kRows, bool kIsHigh>
[[gnu::noinline]] void multiply_nibbles(const std::uint8_t* packed, const std::int8_t* const (&rows)[kRows],
                             Ints (&sums)[kRows][kNibbleVectors / 2]) {
  static const Nibbles nibbles;
  Ints added[kRows][2][2] = {}; // by term, by quarter
  for (int quad = 0; quad < kNibbleInputs / 4; ++quad, packed += 128) {
    Ints values[2];
    nibbles.pair(packed, values[0], values[1]);
    UNROLLED
    for (int i = 0; i < 2; ++i) values[i] = kIsHigh ? high_halves(values[i]) : low_halves(values[i]);
    UNROLLED
    for (int row = 0; row < kRows; ++row)
      UNROLLED
      for (int term = 0; term < 2; ++term) {
        std::int32_t four;
        std::memcpy(&four, rows[row] + quad * 8 + term * 4, sizeof four);
        UNROLLED
        for (int i = 0; i < 2; ++i)
          added[row][term][i] = _mm512_dpbusd_epi32(added[row][term][i], values[i], broadcast_int(four));
      }
  }
  for (int row = 0; row < kRows; ++row)
    for (int i = 0; i < 2; ++i)
      sums[row][i] = sum_of(_mm512_mullo_epi32(added[row][0][i], broadcast_int(NibbleRow::kSteps)), added[row][1][i]);
}

#elif defined(__AVX2__)

// Pairs of inputs by vpmaddubsw: sums of 32 products stay inside 16 bits, because terms are -63 ... 63.
struct NibbleRow {
  static constexpr int kLargest = 63, kSteps = 126; // a row is scale * (first + second / kSteps)
  static constexpr int kInputBytes = 4;             // each pair of terms lies twice, first terms before second ones

  static void put(std::int8_t* row, std::ptrdiff_t input, std::int8_t first, std::int8_t second) {
    std::int8_t* pair = row + input / 2 * 8 + input % 2;
    pair[0] = pair[2] = first;
    pair[4] = pair[6] = second;
  }
};

namespace detail {

inline __m256i broadcast_pair(const std::int8_t* at) {
  std::int32_t twice;
  std::memcpy(&twice, at, sizeof twice);
  return _mm256_set1_epi32(twice);
}

// Sums of 16 bits, of outputs 0 to 7 and 16 to 23, to first * kSteps + second: outputs 0 to 7 and those 16 further.
inline void join_terms(__m256i first, __m256i second, __m256i& low, __m256i& high) {
  const __m256i weights = _mm256_set1_epi32(1 << 16 | NibbleRow::kSteps);
  const __m256i four = _mm256_madd_epi16(_mm256_unpacklo_epi16(first, second), weights);
  const __m256i next = _mm256_madd_epi16(_mm256_unpackhi_epi16(first, second), weights);
  low = _mm256_permute2x128_si256(four, next, 0x20);
  high = _mm256_permute2x128_si256(four, next, 0x31);
}

} // namespace detail

// sums = values 0 ... 15 of 32 of the 64 outputs (kIsHigh: the second half) times kRows rows, times kSteps.
template <int kRows, bool kIsHigh>
[[gnu::noinline]] void multiply_nibbles(const std::uint8_t* packed, const std::int8_t* const (&rows)[kRows],
                             Ints (&sums)[kRows][kNibbleVectors / 2]) {
  const __m256i low_bits = _mm256_set1_epi8(15);
  __m256i added[kRows][2][2] = {}; // by term, by quarter
  for (int pair = 0; pair < kNibbleInputs / 2; ++pair, packed += 64) {
    __m256i even = load_ints(packed), odd = load_ints(packed + 32);
    if constexpr (kIsHigh) {
      even = _mm256_srli_epi16(even, 4);
      odd = _mm256_srli_epi16(odd, 4);
    }
    even = _mm256_and_si256(even, low_bits);
    odd = _mm256_and_si256(odd, low_bits);
    const __m256i left = _mm256_unpacklo_epi8(even, odd), right = _mm256_unpackhi_epi8(even, odd);
    UNROLLED
    for (int row = 0; row < kRows; ++row)
      UNROLLED
      for (int term = 0; term < 2; ++term) {
        const __m256i numbers = detail::broadcast_pair(rows[row] + pair * 8 + term * 4);
        added[row][term][0] = _mm256_add_epi16(added[row][term][0], _mm256_maddubs_epi16(left, numbers));
        added[row][term][1] = _mm256_add_epi16(added[row][term][1], _mm256_maddubs_epi16(right, numbers));
      }
  }
  for (int row = 0; row < kRows; ++row) {
    detail::join_terms(added[row][0][0], added[row][1][0], sums[row][0], sums[row][2]);
    detail::join_terms(added[row][0][1], added[row][1][1], sums[row][1], sums[row][3]);
  }
}

#elif defined(__aarch64__)

// One input after the other by widening multiplications: sums of 32 products stay inside 16 bits.
struct NibbleRow {
  static constexpr int kLargest = 63, kSteps = 126; // a row is scale * (first + second / kSteps)
  static constexpr int kInputBytes = 2;             // the second term follows the first

  static void put(std::int8_t* row, std::ptrdiff_t input, std::int8_t first, std::int8_t second) {
    row[2 * input] = first;
    row[2 * input + 1] = second;
  }
};

// sums = values 0 ... 15 of 32 of the 64 outputs (kIsHigh: the second half) times kRows rows, times kSteps.
template <int kRows, bool kIsHigh>
[[gnu::noinline]] void multiply_nibbles(const std::uint8_t* packed, const std::int8_t* const (&rows)[kRows],
                             Ints (&sums)[kRows][kNibbleVectors / 2]) {
  int16x8_t added[kRows][2][4] = {}; // by term, by eight outputs
  for (int input = 0; input < kNibbleInputs; ++input, packed += 32) {
    int8x8_t values[4];
    for (int i = 0; i < 4; ++i) {
      const uint8x8_t both = vld1_u8(packed + i * 8);
      values[i] = vreinterpret_s8_u8(kIsHigh ? vshr_n_u8(both, 4) : vand_u8(both, vdup_n_u8(15)));
    }
    for (int row = 0; row < kRows; ++row)
      for (int term = 0; term < 2; ++term)
        for (int i = 0; i < 4; ++i)
          added[row][term][i] = vmlal_s8(added[row][term][i], values[i], vdup_n_s8(rows[row][2 * input + term]));
  }
  for (int row = 0; row < kRows; ++row)
    for (int i = 0; i < 4; ++i) {
      const int16x8_t first = added[row][0][i], second = added[row][1][i];
      sums[row][2 * i] = vmlal_n_s16(vmovl_s16(vget_low_s16(second)), vget_low_s16(first), NibbleRow::kSteps);
      sums[row][2 * i + 1] = vmlal_n_s16(vmovl_s16(vget_high_s16(second)), vget_high_s16(first), NibbleRow::kSteps);
    }
}

#endif

} // namespace fastvlm::FASTVLM_LEVEL
