// Vectors of eight float32 numbers: AVX2 with FMA and F16C.

#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#if !defined(__AVX2__) || !defined(__FMA__)
#error "compile this level with AVX2 and FMA"
#endif

namespace fastvlm::FASTVLM_LEVEL {

using Bfloat16 = std::uint16_t;
using Floats = __m256;
using Ints = __m256i; // int32, or 16 of int16, or 32 of int8

constexpr int kLanes = 8;      // float32 numbers in a register
constexpr int kRegisters = 16; // vector registers
constexpr bool kHasBfloat16Pairs = false; // products of bfloat16 as they are

namespace detail {

// Lanes below `count` have all bits set.
inline __m256i first_lanes(std::ptrdiff_t count) {
  alignas(64) static const std::int32_t edge[2 * kLanes] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
  const std::ptrdiff_t missing = kLanes - (count > kLanes ? kLanes : count < 0 ? 0 : count);
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(edge + missing));
}

inline __m128i rounded_to_bfloat16(__m256 values) {
  const __m256i bits = _mm256_castps_si256(values);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i nearest = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000)); // NaN stays NaN
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(values, values, _CMP_UNORD_Q));
  const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(nearest, quiet, is_nan), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}

} // namespace detail

inline Floats zeros() { return _mm256_setzero_ps(); }
inline Floats broadcast(float value) { return _mm256_set1_ps(value); }
inline Floats broadcast(const float* from) { return _mm256_broadcast_ss(from); }

inline Floats load(const float* from) { return _mm256_loadu_ps(from); }
inline Floats load(const Bfloat16* from) {
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}
// The first `count` numbers; the other lanes are zero, and their memory is not read.
inline Floats load(const float* from, std::ptrdiff_t count) {
  if (count >= kLanes) return load(from);
  return _mm256_maskload_ps(from, detail::first_lanes(count));
}
inline Floats load(const Bfloat16* from, std::ptrdiff_t count) {
  if (count >= kLanes) return load(from);
  Bfloat16 some[kLanes] = {};
  if (count > 0) std::memcpy(some, from, static_cast<std::size_t>(count) * sizeof(Bfloat16));
  return load(some);
}

inline void store(float* to, Floats values) { _mm256_storeu_ps(to, values); }
// Rounded to nearest, ties to even.
inline void store(Bfloat16* to, Floats values) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), detail::rounded_to_bfloat16(values));
}
inline void store(float* to, Floats values, std::ptrdiff_t count) {
  if (count >= kLanes) return store(to, values); // a masked store takes twenty times as long on AMD
  _mm256_maskstore_ps(to, detail::first_lanes(count), values);
}
inline void store(Bfloat16* to, Floats values, std::ptrdiff_t count) {
  if (count >= kLanes) return store(to, values);
  Bfloat16 some[kLanes];
  store(some, values);
  if (count > 0) std::memcpy(to, some, static_cast<std::size_t>(count) * sizeof(Bfloat16));
}

inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }     // a * b + c
inline Floats subtract_product(Floats c, Floats a, Floats b) { return _mm256_fnmadd_ps(a, b, c); } // c - a * b

// `b` where either is NaN.
inline Floats smaller(Floats a, Floats b) { return _mm256_min_ps(a, b); }
inline Floats larger(Floats a, Floats b) { return _mm256_max_ps(a, b); }

inline Floats nearest_integers(Floats x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

// x times 2 to the power of `powers`, integers of -126 to 127.
inline Floats times_power_of_2(Floats x, Floats powers) {
  const __m256i exponents = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(powers), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(x, _mm256_castsi256_ps(exponents));
}

// The sign of `sign` on the magnitude of `x`.
inline Floats with_sign(Floats x, Floats sign) {
  const __m256 bit = _mm256_set1_ps(-0.0f);
  return _mm256_or_ps(_mm256_andnot_ps(bit, x), _mm256_and_ps(bit, sign));
}

// a where `x` is at least `limit`, else b.
inline Floats where_at_least(Floats x, Floats limit, Floats a, Floats b) {
  return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, limit, _CMP_GE_OQ));
}

inline float sum(Floats x) {
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

inline float largest(Floats x) {
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

// Integers.

inline Ints load_ints(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
inline void store_ints(void* to, Ints values) { _mm256_storeu_si256(static_cast<__m256i*>(to), values); }
inline Ints no_ints() { return _mm256_setzero_si256(); }
inline Ints broadcast_int(std::int32_t value) { return _mm256_set1_epi32(value); }
inline Ints as_ints(Floats x) { return _mm256_castps_si256(x); } // the same bits
inline Ints nearest_ints(Floats x) { return _mm256_cvtps_epi32(x); }
inline Floats to_floats(Ints x) { return _mm256_cvtepi32_ps(x); }
inline Ints sum_of(Ints a, Ints b) { return _mm256_add_epi32(a, b); } // int32

// 2 * kLanes numbers of 8 bits as int16.
inline Ints widen_int8(const std::int8_t* from) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}

// sums + a[2 i] * b[2 i] + a[2 i + 1] * b[2 i + 1], of int16.
inline Ints add_pairs(Ints sums, Ints a, Ints b) { return _mm256_add_epi32(sums, _mm256_madd_epi16(a, b)); }

// int32 within the range of int16 as int16: the numbers of `low`, then those of `high`.
inline Ints narrow_to_int16(Ints low, Ints high) {
  return _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xD8);
}

// kLanes pairs of bfloat16: the first of each, and the second.
inline void load_scales_and_zeros(const std::uint32_t* from, Floats& first, Floats& second) {
  const __m256i both = load_ints(from);
  first = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
  second = _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(static_cast<int>(0xFFFF0000))));
}

// Bits `shift` to `shift` + 3 of kLanes bytes, minus 8, as pairs of int16: one of `even`, one of `odd`.
inline Ints nibble_pairs(const std::uint8_t* even, const std::uint8_t* odd, int shift) {
  const auto wide = [](const std::uint8_t* from) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
  };
  const Ints both = _mm256_or_si256(wide(even), _mm256_slli_epi32(wide(odd), 16));
  const Ints values = _mm256_and_si256(_mm256_srl_epi32(both, _mm_cvtsi32_si128(shift)), _mm256_set1_epi32(15 << 16 | 15));
  return _mm256_sub_epi16(values, _mm256_set1_epi32(8 << 16 | 8));
}

// Transposes kLanes rows of kLanes numbers of 32 bits.
inline void transpose(Ints (&rows)[kLanes]) {
  Ints pairs[kLanes], fours[kLanes];
  for (int i = 0; i < kLanes; i += 2) {
    pairs[i] = _mm256_unpacklo_epi32(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < kLanes; i += 4) {
    fours[i] = _mm256_unpacklo_epi64(pairs[i], pairs[i + 2]);
    fours[i + 1] = _mm256_unpackhi_epi64(pairs[i], pairs[i + 2]);
    fours[i + 2] = _mm256_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
    fours[i + 3] = _mm256_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    rows[i] = _mm256_permute2x128_si256(fours[i], fours[i + 4], 0x20);
    rows[i + 4] = _mm256_permute2x128_si256(fours[i], fours[i + 4], 0x31);
  }
}

// 0, 1, 2, ...
inline Floats lane_numbers() { return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7); }

// sums + the four products a[4 i + j] * b[4 i + j] of unsigned with signed 8-bit integers. Exact only if two neighboring
// products together fit 16 bits.
inline Ints add_quads(Ints sums, Ints a, Ints b) {
#if defined(__AVXVNNI__)
  return _mm256_dpbusd_avx_epi32(sums, a, b);
#else
  return _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)));
#endif
}

// kLanes integers of 0 to 255 as bytes.
inline void store_uint8(std::uint8_t* to, Ints values) {
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(values), _mm256_extracti128_si256(values, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(words, words));
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
