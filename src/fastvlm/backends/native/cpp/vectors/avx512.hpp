// Vectors of 16 float32 numbers: AVX-512 with bfloat16 and VNNI.

#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512DQ__) || !defined(__AVX512BF16__)
#error "compile this level with AVX-512 and its bfloat16"
#endif

namespace fastvlm::FASTVLM_LEVEL {

using Bfloat16 = std::uint16_t;
using Floats = __m512;
using Ints = __m512i; // int32, or 32 of int16, or 64 of int8

constexpr int kLanes = 16;     // float32 numbers in a register
constexpr int kRegisters = 32; // vector registers
constexpr bool kHasBfloat16Pairs = true; // products of bfloat16 as they are

namespace detail {

inline __mmask16 first_lanes(std::ptrdiff_t count) {
  return count >= kLanes ? __mmask16{0xFFFF} : count <= 0 ? __mmask16{0} : static_cast<__mmask16>((1u << count) - 1);
}

inline __m512 widened(__m256i halves) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

inline __m256i rounded_to_bfloat16(__m512 values) {
  const __m256bh halves = _mm512_cvtneps_pbh(values);
  __m256i bits;
  std::memcpy(&bits, &halves, sizeof bits);
  return bits;
}

} // namespace detail

inline Floats zeros() { return _mm512_setzero_ps(); }
inline Floats broadcast(float value) { return _mm512_set1_ps(value); }
inline Floats broadcast(const float* from) { return _mm512_set1_ps(*from); }

inline Floats load(const float* from) { return _mm512_loadu_ps(from); }
inline Floats load(const Bfloat16* from) {
  return detail::widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
// The first `count` numbers; the other lanes are zero, and their memory is not read.
inline Floats load(const float* from, std::ptrdiff_t count) {
  return _mm512_maskz_loadu_ps(detail::first_lanes(count), from);
}
inline Floats load(const Bfloat16* from, std::ptrdiff_t count) {
  return detail::widened(_mm256_maskz_loadu_epi16(detail::first_lanes(count), from));
}

inline void store(float* to, Floats values) { _mm512_storeu_ps(to, values); }
// Rounded to nearest, ties to even.
inline void store(Bfloat16* to, Floats values) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), detail::rounded_to_bfloat16(values));
}
inline void store(float* to, Floats values, std::ptrdiff_t count) {
  _mm512_mask_storeu_ps(to, detail::first_lanes(count), values);
}
inline void store(Bfloat16* to, Floats values, std::ptrdiff_t count) {
  _mm256_mask_storeu_epi16(to, detail::first_lanes(count), detail::rounded_to_bfloat16(values));
}

inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }     // a * b + c
inline Floats subtract_product(Floats c, Floats a, Floats b) { return _mm512_fnmadd_ps(a, b, c); } // c - a * b

// `b` where either is NaN.
inline Floats smaller(Floats a, Floats b) { return _mm512_min_ps(a, b); }
inline Floats larger(Floats a, Floats b) { return _mm512_max_ps(a, b); }

inline Floats nearest_integers(Floats x) { return _mm512_roundscale_ps(x, 8); }

// x times 2 to the power of `powers`, integers of -126 to 127.
inline Floats times_power_of_2(Floats x, Floats powers) { return _mm512_scalef_ps(x, powers); }

// The sign of `sign` on the magnitude of `x`.
inline Floats with_sign(Floats x, Floats sign) {
  const __m512i magnitude = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7FFFFFFF));
  const __m512i bit = _mm512_and_si512(_mm512_castps_si512(sign), _mm512_set1_epi32(static_cast<int>(0x80000000)));
  return _mm512_castsi512_ps(_mm512_or_si512(magnitude, bit));
}

// a where `x` is at least `limit`, else b.
inline Floats where_at_least(Floats x, Floats limit, Floats a, Floats b) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, limit, _CMP_GE_OQ), b, a);
}

inline float sum(Floats x) { return _mm512_reduce_add_ps(x); }
inline float largest(Floats x) { return _mm512_reduce_max_ps(x); }

// Integers.

inline Ints load_ints(const void* from) { return _mm512_loadu_si512(from); }
inline void store_ints(void* to, Ints values) { _mm512_storeu_si512(to, values); }
inline Ints no_ints() { return _mm512_setzero_si512(); }
inline Ints broadcast_int(std::int32_t value) { return _mm512_set1_epi32(value); }
inline Ints as_ints(Floats x) { return _mm512_castps_si512(x); } // the same bits
inline Ints nearest_ints(Floats x) { return _mm512_cvtps_epi32(x); }
inline Floats to_floats(Ints x) { return _mm512_cvtepi32_ps(x); }
inline Ints sum_of(Ints a, Ints b) { return _mm512_add_epi32(a, b); } // int32

// 2 * kLanes numbers of 8 bits as int16.
inline Ints widen_int8(const std::int8_t* from) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

// sums + a[2 i] * b[2 i] + a[2 i + 1] * b[2 i + 1], of int16.
inline Ints add_pairs(Ints sums, Ints a, Ints b) { return _mm512_dpwssd_epi32(sums, a, b); }

// The same of bfloat16, sums of float32.
inline Floats add_bfloat16_pairs(Floats sums, Ints a, Ints b) {
  __m512bh left, right;
  std::memcpy(&left, &a, sizeof left);
  std::memcpy(&right, &b, sizeof right);
  return _mm512_dpbf16_ps(sums, left, right);
}

// int32 within the range of int16 as int16: the numbers of `low`, then those of `high`.
inline Ints narrow_to_int16(Ints low, Ints high) {
  const __m512i lower = _mm512_castsi256_si512(_mm512_cvtsepi32_epi16(low));
  return _mm512_inserti64x4(lower, _mm512_cvtsepi32_epi16(high), 1);
}

// kLanes pairs of bfloat16: the first of each, and the second.
inline void load_scales_and_zeros(const std::uint32_t* from, Floats& first, Floats& second) {
  const __m512i both = load_ints(from);
  first = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
  second = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xFFFF0000))));
}

// Bits `shift` to `shift` + 3 of kLanes bytes, minus 8, as pairs of int16: one of `even`, one of `odd`.
inline Ints nibble_pairs(const std::uint8_t* even, const std::uint8_t* odd, int shift) {
  const auto wide = [](const std::uint8_t* from) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  };
  const Ints both = _mm512_or_si512(wide(even), _mm512_slli_epi32(wide(odd), 16));
  const Ints values = _mm512_and_si512(_mm512_srl_epi32(both, _mm_cvtsi32_si128(shift)), _mm512_set1_epi32(15 << 16 | 15));
  return _mm512_sub_epi16(values, _mm512_set1_epi32(8 << 16 | 8));
}

// Transposes kLanes rows of kLanes numbers of 32 bits.
inline void transpose(Ints (&rows)[kLanes]) {
  Ints pairs[kLanes], fours[kLanes];
  for (int i = 0; i < kLanes; i += 2) {
    pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < kLanes; i += 4) { // fours[i + k]: in each quarter q of a register, column 4 q + k of four rows
    fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
    fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
    fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
    fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
  }
  for (int k = 0; k < 4; ++k) {
    const Ints even_low = _mm512_shuffle_i32x4(fours[k], fours[k + 4], 0x88);
    const Ints odd_low = _mm512_shuffle_i32x4(fours[k], fours[k + 4], 0xDD);
    const Ints even_high = _mm512_shuffle_i32x4(fours[k + 8], fours[k + 12], 0x88);
    const Ints odd_high = _mm512_shuffle_i32x4(fours[k + 8], fours[k + 12], 0xDD);
    rows[k] = _mm512_shuffle_i32x4(even_low, even_high, 0x88);
    rows[k + 4] = _mm512_shuffle_i32x4(odd_low, odd_high, 0x88);
    rows[k + 8] = _mm512_shuffle_i32x4(even_low, even_high, 0xDD);
    rows[k + 12] = _mm512_shuffle_i32x4(odd_low, odd_high, 0xDD);
  }
}

// 0, 1, 2, ...
inline Floats lane_numbers() { return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }

// sums + the four products a[4 i + j] * b[4 i + j] of unsigned with signed 8-bit integers.
inline Ints add_quads(Ints sums, Ints a, Ints b) { return _mm512_dpbusd_epi32(sums, a, b); }

// kLanes integers of 0 to 255 as bytes.
inline void store_uint8(std::uint8_t* to, Ints values) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(values));
}

// While it lives, the thread's results too small for a normal number are zeros: sums of them would take a hundred times
// as long.
class FlushDenormals {
 public:
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | kFlushToZero); }
  ~FlushDenormals() { _mm_setcsr(before_); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  static constexpr unsigned kFlushToZero = 0x8000;
  const unsigned before_;
};

inline void pause() { _mm_pause(); }

} // namespace fastvlm::FASTVLM_LEVEL
