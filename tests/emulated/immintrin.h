// AVX-512 and AMX in plain C++, as far as src/fastvlm/backends/native/cpp/ uses them: for tests on CPUs without these.
//
// With this folder first among the include paths the kernels compile for any x86-64 CPU, and every load and store is
// one that AddressSanitizer and UndefinedBehaviorSanitizer check: rows of tiles and masked lanes one by one, aligned
// ones for their alignment. Names and results are those of Intel's Intrinsics Guide. Written for g++ and clang++,
// which provide vectors of any length.

#pragma once

#include <emmintrin.h>
#include <unistd.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

// ---- registers

typedef float __m512 __attribute__((vector_size(64), may_alias));
typedef long long __m512i __attribute__((vector_size(64), may_alias));
typedef long long __m256i __attribute__((vector_size(32), may_alias));
typedef short __m512bh __attribute__((vector_size(64), may_alias));
typedef short __m256bh __attribute__((vector_size(32), may_alias));
typedef std::uint16_t __mmask16;
typedef std::uint32_t __mmask32;

namespace emulated {

template <typename Number, int kBytes>
struct VectorOf {
  typedef Number type __attribute__((vector_size(kBytes), may_alias));
};
template <typename Number, int kBytes = 64>
using Vector = typename VectorOf<Number, kBytes>::type;

typedef Vector<std::int8_t> I8;
typedef Vector<std::uint8_t> U8;
typedef Vector<std::int16_t> I16;
typedef Vector<std::uint16_t> U16;
typedef Vector<std::int32_t> I32;
typedef Vector<std::uint32_t> U32;
typedef Vector<std::int64_t> I64;

// The same bits as another vector.
template <typename To, typename From>
inline To as(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  return (To)from;
}

template <typename To, typename From>
inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <typename V>
constexpr int lanes_of() {
  return static_cast<int>(sizeof(V) / sizeof(V{}[0]));
}

// A vector of f(0), f(1), ...
template <typename V, typename F>
inline V each(const F& f) {
  V result{};
  for (int i = 0; i < lanes_of<V>(); ++i) result[i] = f(i);
  return result;
}

template <typename V>
inline V load(const void* from) {
  V result;
  std::memcpy(&result, from, sizeof result);
  return result;
}
template <typename V>
inline void store(void* to, V value) {
  std::memcpy(to, &value, sizeof value);
}
// A dereference, so that UBSan sees the alignment.
template <typename V>
inline V load_aligned(const void* from) {
  return *static_cast<const V*>(from);
}
template <typename V>
inline void store_aligned(void* to, V value) {
  *static_cast<V*>(to) = value;
}

// Only lanes whose bit is set touch memory.
template <typename V>
inline V load_masked(std::uint64_t mask, const void* from) {
  V result{};
  using Number = std::remove_reference_t<decltype(result[0])>;
  for (int i = 0; i < lanes_of<V>(); ++i)
    if (mask >> i & 1) {
      Number number;
      std::memcpy(&number, static_cast<const char*>(from) + i * sizeof(Number), sizeof number);
      result[i] = number;
    }
  return result;
}
template <typename V>
inline void store_masked(void* to, std::uint64_t mask, V value) {
  for (int i = 0; i < lanes_of<V>(); ++i)
    if (mask >> i & 1) {
      const auto number = value[i];
      std::memcpy(static_cast<char*>(to) + i * sizeof number, &number, sizeof number);
    }
}

// As VCVTNEPS2BF16: to nearest, ties to even; numbers below the normal ones are zeros.
inline std::int16_t bfloat16(float value) {
  const std::uint32_t all = bits<std::uint32_t>(value), rest = all & 0x7FFFFFFF;
  if (rest > 0x7F800000) return static_cast<std::int16_t>(all >> 16 | 0x40);
  if (rest < 0x00800000) return static_cast<std::int16_t>(all >> 16 & 0x8000);
  return static_cast<std::int16_t>((all + 0x7FFF + (all >> 16 & 1)) >> 16);
}
inline float widened(std::uint16_t half) { return bits<float>(static_cast<std::uint32_t>(half) << 16); }

inline std::int32_t nearest(float value) {
  const float whole = std::nearbyint(value);
  return whole >= -2147483648.0f && whole < 2147483648.0f ? static_cast<std::int32_t>(whole) : INT32_MIN;
}

} // namespace emulated

// ---- loads and stores

inline __m512 _mm512_load_ps(const void* from) { return emulated::load_aligned<__m512>(from); }
inline __m512 _mm512_loadu_ps(const void* from) { return emulated::load<__m512>(from); }
inline __m512i _mm512_load_si512(const void* from) { return emulated::load_aligned<__m512i>(from); }
inline __m512i _mm512_loadu_si512(const void* from) { return emulated::load<__m512i>(from); }
inline __m256i _mm256_loadu_si256(const void* from) { return emulated::load<__m256i>(from); }
inline void _mm512_store_ps(void* to, __m512 value) { emulated::store_aligned(to, value); }
inline void _mm512_storeu_ps(void* to, __m512 value) { emulated::store(to, value); }
inline void _mm512_store_si512(void* to, __m512i value) { emulated::store_aligned(to, value); }
inline void _mm512_storeu_si512(void* to, __m512i value) { emulated::store(to, value); }
inline void _mm256_storeu_si256(void* to, __m256i value) { emulated::store(to, value); }

inline __m512 _mm512_maskz_loadu_ps(__mmask16 mask, const void* from) {
  return emulated::load_masked<__m512>(mask, from);
}
inline __m512i _mm512_maskz_loadu_epi32(__mmask16 mask, const void* from) {
  return emulated::as<__m512i>(emulated::load_masked<emulated::I32>(mask, from));
}
inline __m512i _mm512_maskz_loadu_epi16(__mmask32 mask, const void* from) {
  return emulated::as<__m512i>(emulated::load_masked<emulated::I16>(mask, from));
}
inline __m256i _mm256_maskz_loadu_epi16(__mmask16 mask, const void* from) {
  return emulated::as<__m256i>(emulated::load_masked<emulated::Vector<std::int16_t, 32>>(mask, from));
}
inline __m256i _mm256_maskz_loadu_epi8(__mmask32 mask, const void* from) {
  return emulated::as<__m256i>(emulated::load_masked<emulated::Vector<std::int8_t, 32>>(mask, from));
}
inline void _mm512_mask_storeu_ps(void* to, __mmask16 mask, __m512 value) { emulated::store_masked(to, mask, value); }
inline void _mm512_mask_storeu_epi16(void* to, __mmask32 mask, __m512i value) {
  emulated::store_masked(to, mask, emulated::as<emulated::I16>(value));
}
inline void _mm256_mask_storeu_epi16(void* to, __mmask16 mask, __m256i value) {
  emulated::store_masked(to, mask, emulated::as<emulated::Vector<std::int16_t, 32>>(value));
}

// ---- constants, casts

inline __m512 _mm512_setzero_ps() { return __m512{}; }
inline __m512i _mm512_setzero_si512() { return __m512i{}; }
inline __m512 _mm512_set1_ps(float value) { return value - __m512{}; }
inline __m512i _mm512_set1_epi32(int value) { return emulated::as<__m512i>(value - emulated::I32{}); }
inline __m512i _mm512_set1_epi8(char value) {
  return emulated::as<__m512i>(emulated::each<emulated::I8>([=](int) { return value; }));
}
template <typename... Floats>
inline __m512 _mm512_setr_ps(Floats... values) {
  return __m512{static_cast<float>(values)...};
}
template <typename... Ints>
inline __m512i _mm512_setr_epi32(Ints... values) {
  return emulated::as<__m512i>(emulated::I32{static_cast<std::int32_t>(values)...});
}

inline __m512 _mm512_castsi512_ps(__m512i x) { return emulated::as<__m512>(x); }
inline __m512i _mm512_castps_si512(__m512 x) { return emulated::as<__m512i>(x); }
inline __m256i _mm512_castsi512_si256(__m512i x) { return __m256i{x[0], x[1], x[2], x[3]}; }
inline __m512i _mm512_castsi256_si512(__m256i x) { return __m512i{x[0], x[1], x[2], x[3], -1, -1, -1, -1}; }
inline __m128i _mm256_castsi256_si128(__m256i x) { return __m128i{x[0], x[1]}; }
inline __m128i _mm256_extracti128_si256(__m256i x, int half) { return __m128i{x[2 * half], x[2 * half + 1]}; }
inline __m256i _mm512_extracti64x4_epi64(__m512i x, int half) {
  return __m256i{x[4 * half], x[4 * half + 1], x[4 * half + 2], x[4 * half + 3]};
}

// ---- float32

inline __m512 _mm512_add_ps(__m512 a, __m512 b) { return a + b; }
inline __m512 _mm512_sub_ps(__m512 a, __m512 b) { return a - b; }
inline __m512 _mm512_mul_ps(__m512 a, __m512 b) { return a * b; }
inline __m512 _mm512_div_ps(__m512 a, __m512 b) { return a / b; }
// One rounding where the CPU has it, and the compiler may contract (g++'s default); else two.
inline __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) { return a * b + c; }
inline __m512 _mm512_fmsub_ps(__m512 a, __m512 b, __m512 c) { return a * b - c; }
inline __m512 _mm512_fnmadd_ps(__m512 a, __m512 b, __m512 c) { return c - a * b; }
inline __m512 _mm512_max_ps(__m512 a, __m512 b) { return a > b ? a : b; } // the second one, if either is NaN
inline __m512 _mm512_min_ps(__m512 a, __m512 b) { return a < b ? a : b; }
inline __m512 _mm512_mask_max_ps(__m512 source, __mmask16 mask, __m512 a, __m512 b) {
  const __m512 largest = _mm512_max_ps(a, b);
  return emulated::each<__m512>([&](int i) { return mask >> i & 1 ? largest[i] : source[i]; });
}
inline __m512 _mm512_maskz_mov_ps(__mmask16 mask, __m512 a) {
  return emulated::each<__m512>([&](int i) { return mask >> i & 1 ? a[i] : 0.0f; });
}

#define _CMP_NEQ_UQ 4
#define _CMP_GE_OQ 29
inline __mmask16 _mm512_cmp_ps_mask(__m512 a, __m512 b, int predicate) {
  if (predicate == _CMP_GE_OQ) {
    unsigned at_least = 0;
    for (int i = 0; i < 16; ++i) at_least |= static_cast<unsigned>(a[i] >= b[i]) << i;
    return static_cast<__mmask16>(at_least);
  }
  if (predicate != _CMP_NEQ_UQ) std::abort();
  unsigned mask = 0;
  for (int i = 0; i < 16; ++i) mask |= static_cast<unsigned>(!(a[i] == b[i])) << i;
  return static_cast<__mmask16>(mask);
}

inline __m512 _mm512_roundscale_ps(__m512 x, int control) { // to the nearest integer
  if (control != 8) std::abort();
  return emulated::each<__m512>([&](int i) { return std::nearbyint(x[i]); });
}
inline __m512 _mm512_reduce_ps(__m512 x, int control) { // minus the integer below
  if (control != 1) std::abort();
  return emulated::each<__m512>([&](int i) { return std::isinf(x[i]) ? 0.0f : x[i] - std::floor(x[i]); });
}
inline __m512 _mm512_scalef_ps(__m512 a, __m512 b) { // a times 2 to the power of the integer below b
  return emulated::each<__m512>([&](int i) {
    if (std::isnan(b[i])) return b[i];
    const float power = std::floor(b[i]);
    return std::ldexp(a[i], power < -400 ? -400 : power > 400 ? 400 : static_cast<int>(power));
  });
}
inline __m512 _mm512_range_ps(__m512 a, __m512 b, int control) { // the smaller magnitude, with the sign of a
  if (control != 2) std::abort();
  return emulated::each<__m512>([&](int i) {
    return std::copysign(std::fabs(a[i]) <= std::fabs(b[i]) ? a[i] : b[i], a[i]);
  });
}
inline __m512 _mm512_mask_blend_ps(__mmask16 mask, __m512 a, __m512 b) {
  return emulated::each<__m512>([&](int i) { return mask >> i & 1 ? b[i] : a[i]; });
}
inline float _mm512_reduce_max_ps(__m512 x) {
  float most = x[0];
  for (int i = 1; i < 16; ++i) most = x[i] > most ? x[i] : most;
  return most;
}
// Pairs of bfloat16: the products are exact, the order of sums is the CPU's.
inline __m512 _mm512_dpbf16_ps(__m512 sums, __m512bh a, __m512bh b) {
  return emulated::each<__m512>([&](int i) {
    const auto wide = [](short half) { return emulated::widened(static_cast<std::uint16_t>(half)); };
    return sums[i] + wide(a[2 * i + 1]) * wide(b[2 * i + 1]) + wide(a[2 * i]) * wide(b[2 * i]);
  });
}
inline float _mm512_reduce_add_ps(__m512 x) {
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i) x[i] += x[i + half];
  return x[0];
}

// ---- integers

inline __m512i _mm512_or_si512(__m512i a, __m512i b) { return a | b; }
inline __m512i _mm512_and_si512(__m512i a, __m512i b) { return a & b; }
inline __m512i _mm512_add_epi32(__m512i a, __m512i b) {
  return emulated::as<__m512i>(emulated::as<emulated::U32>(a) + emulated::as<emulated::U32>(b));
}
inline __m512i _mm512_slli_epi32(__m512i a, unsigned count) {
  return emulated::as<__m512i>(emulated::as<emulated::U32>(a) << count);
}
inline __m512i _mm512_srli_epi16(__m512i a, unsigned count) {
  return emulated::as<__m512i>(
      emulated::each<emulated::U16>([&](int i) { return emulated::as<emulated::U16>(a)[i] >> count; }));
}
inline __m512i _mm512_max_epi32(__m512i a, __m512i b) {
  const auto x = emulated::as<emulated::I32>(a), y = emulated::as<emulated::I32>(b);
  return emulated::as<__m512i>(x > y ? x : y);
}
inline int _mm512_reduce_max_epi32(__m512i x) {
  const auto numbers = emulated::as<emulated::I32>(x);
  int largest = numbers[0];
  for (int i = 1; i < 16; ++i) largest = largest < numbers[i] ? numbers[i] : largest;
  return largest;
}
// Adds to each 32-bit lane the products of its four unsigned bytes of `a` and signed ones of `b`.
inline __m512i _mm512_mullo_epi32(__m512i a, __m512i b) {
  return emulated::as<__m512i>(emulated::as<emulated::U32>(a) * emulated::as<emulated::U32>(b));
}
inline __m512i _mm512_sub_epi16(__m512i a, __m512i b) {
  return emulated::as<__m512i>(emulated::as<emulated::U16>(a) - emulated::as<emulated::U16>(b));
}
inline __m512i _mm512_srl_epi32(__m512i x, __m128i count) {
  return emulated::as<__m512i>(emulated::as<emulated::U32>(x) >> static_cast<unsigned>(_mm_cvtsi128_si32(count)));
}
inline __m512i _mm512_cvtepu8_epi32(__m128i x) {
  const auto bytes = emulated::as<emulated::Vector<std::uint8_t, 16>>(x);
  return emulated::as<__m512i>(emulated::each<emulated::I32>([&](int i) { return bytes[i]; }));
}
inline __m256i _mm512_cvtsepi32_epi16(__m512i x) {
  const auto whole = emulated::as<emulated::I32>(x);
  return emulated::as<__m256i>(emulated::each<emulated::Vector<std::int16_t, 32>>([&](int i) {
    return static_cast<std::int16_t>(whole[i] < -32768 ? -32768 : whole[i] > 32767 ? 32767 : whole[i]);
  }));
}
inline __m512i _mm512_inserti64x4(__m512i x, __m256i half, int index) {
  std::memcpy(reinterpret_cast<char*>(&x) + index * 32, &half, sizeof half);
  return x;
}
inline __m512i _mm512_dpwssd_epi32(__m512i sums, __m512i a, __m512i b) {
  const auto x = emulated::as<emulated::I16>(a), y = emulated::as<emulated::I16>(b);
  auto result = emulated::as<emulated::U32>(sums);
  for (int i = 0; i < 32; ++i) result[i / 2] += static_cast<std::uint32_t>(x[i] * y[i]);
  return emulated::as<__m512i>(result);
}
inline __m512i _mm512_dpbusd_epi32(__m512i sums, __m512i a, __m512i b) {
  const auto x = emulated::as<emulated::U8>(a);
  const auto y = emulated::as<emulated::I8>(b);
  auto result = emulated::as<emulated::U32>(sums);
  for (int i = 0; i < 64; ++i) result[i / 4] += static_cast<std::uint32_t>(x[i] * y[i]);
  return emulated::as<__m512i>(result);
}

// ---- conversions

inline __m512 _mm512_cvtepi32_ps(__m512i x) { return __builtin_convertvector(emulated::as<emulated::I32>(x), __m512); }
inline __m512i _mm512_cvtps_epi32(__m512 x) {
  return emulated::as<__m512i>(emulated::each<emulated::I32>([&](int i) { return emulated::nearest(x[i]); }));
}
inline __m128i _mm512_cvtepi32_epi8(__m512i x) {
  const auto words = emulated::as<emulated::I32>(x);
  return emulated::as<__m128i>(emulated::each<emulated::Vector<std::int8_t, 16>>(
      [&](int i) { return static_cast<std::int8_t>(words[i] & 0xFF); }));
}
inline __m128i _mm512_cvtsepi32_epi8(__m512i x) {
  const auto numbers = emulated::as<emulated::I32>(x);
  return emulated::as<__m128i>(emulated::each<emulated::Vector<std::int8_t, 16>>([&](int i) {
    return static_cast<std::int8_t>(numbers[i] < -128 ? -128 : numbers[i] > 127 ? 127 : numbers[i]);
  }));
}
inline __m512i _mm512_cvtepi8_epi16(__m256i x) {
  const auto bytes = emulated::as<emulated::Vector<std::int8_t, 32>>(x);
  return emulated::as<__m512i>(emulated::each<emulated::I16>([&](int i) { return bytes[i]; }));
}
inline __m512i _mm512_cvtepi8_epi32(__m128i x) {
  return emulated::as<__m512i>(
      __builtin_convertvector((emulated::Vector<std::int8_t, 16>)x, emulated::I32));
}
inline __m512i _mm512_cvtepu16_epi32(__m256i x) {
  return emulated::as<__m512i>(
      __builtin_convertvector((emulated::Vector<std::uint16_t, 32>)x, emulated::U32));
}
inline __m512i _mm512_cvtepu8_epi16(__m256i x) {
  return emulated::as<__m512i>(__builtin_convertvector((emulated::Vector<std::uint8_t, 32>)x, emulated::U16));
}
inline __m512bh _mm512_cvtne2ps_pbh(__m512 high, __m512 low) {
  return emulated::each<__m512bh>([&](int i) { return emulated::bfloat16(i < 16 ? low[i] : high[i - 16]); });
}
inline __m256bh _mm512_cvtneps_pbh(__m512 x) {
  return emulated::each<__m256bh>([&](int i) { return emulated::bfloat16(x[i]); });
}

// ---- permutations

namespace emulated {

// Two vectors' lanes in turn, in each quarter of a register those of its lower or upper half.
template <typename V>
inline __m512i unpacked(__m512i a, __m512i b, bool is_high) {
  constexpr int kLanes = 16 / static_cast<int>(sizeof(V{}[0])), kHalf = kLanes / 2;
  const V x = as<V>(a), y = as<V>(b);
  return as<__m512i>(each<V>([&](int i) {
    const int from = i / kLanes * kLanes + i % kLanes / 2 + (is_high ? kHalf : 0);
    return i % 2 ? y[from] : x[from];
  }));
}

} // namespace emulated

inline __m512i _mm512_unpacklo_epi16(__m512i a, __m512i b) { return emulated::unpacked<emulated::I16>(a, b, false); }
inline __m512i _mm512_unpackhi_epi16(__m512i a, __m512i b) { return emulated::unpacked<emulated::I16>(a, b, true); }
inline __m512i _mm512_unpacklo_epi32(__m512i a, __m512i b) { return emulated::unpacked<emulated::I32>(a, b, false); }
inline __m512i _mm512_unpackhi_epi32(__m512i a, __m512i b) { return emulated::unpacked<emulated::I32>(a, b, true); }
inline __m512i _mm512_unpacklo_epi64(__m512i a, __m512i b) { return emulated::unpacked<emulated::I64>(a, b, false); }
inline __m512i _mm512_unpackhi_epi64(__m512i a, __m512i b) { return emulated::unpacked<emulated::I64>(a, b, true); }

inline __m512i _mm512_shuffle_i32x4(__m512i a, __m512i b, int order) {
  return emulated::each<__m512i>([&](int i) {
    const int quarter = order >> (i / 2 * 2) & 3, from = quarter * 2 + i % 2;
    return i < 4 ? a[from] : b[from];
  });
}
inline __m512i _mm512_permutexvar_epi16(__m512i order, __m512i x) {
  const auto at = emulated::as<emulated::U16>(order), numbers = emulated::as<emulated::U16>(x);
  return emulated::as<__m512i>(emulated::each<emulated::U16>([&](int i) { return numbers[at[i] & 31]; }));
}
inline __m512i _mm512_permutexvar_epi8(__m512i order, __m512i x) {
  const auto at = emulated::as<emulated::U8>(order), numbers = emulated::as<emulated::U8>(x);
  return emulated::as<__m512i>(emulated::each<emulated::U8>([&](int i) { return numbers[at[i] & 63]; }));
}
inline __m512i _mm512_permutex2var_epi16(__m512i a, __m512i order, __m512i b) {
  const auto at = emulated::as<emulated::U16>(order), x = emulated::as<emulated::U16>(a),
             y = emulated::as<emulated::U16>(b);
  return emulated::as<__m512i>(
      emulated::each<emulated::U16>([&](int i) { return at[i] & 32 ? y[at[i] & 31] : x[at[i] & 31]; }));
}
inline __m512 _mm512_permutex2var_ps(__m512 a, __m512i order, __m512 b) {
  const auto at = emulated::as<emulated::U32>(order);
  return emulated::each<__m512>([&](int i) { return at[i] & 16 ? b[at[i] & 15] : a[at[i] & 15]; });
}

// ---- tile registers

namespace emulated {

struct Tile {
  alignas(64) std::uint8_t rows[16][64];
};
struct Tiles {
  alignas(64) std::uint8_t config[64];
  Tile tiles[8];
};
inline Tiles& tiles() {
  static thread_local Tiles all{};
  return all;
}

// What the CPU refuses, ends the process here too.
inline int num_rows(int tile) {
  if (tile < 0 || tile > 7 || tiles().config[0] != 1) std::abort();
  return tiles().config[48 + tile];
}
inline int row_bytes(int tile) {
  num_rows(tile);
  return tiles().config[16 + 2 * tile] | tiles().config[17 + 2 * tile] << 8;
}

inline void check_product(int sums, int a, int b) {
  const bool is_right = num_rows(sums) == num_rows(a) && row_bytes(sums) == row_bytes(b) &&
                        row_bytes(a) == 4 * num_rows(b) && sums != a && sums != b && a != b;
  if (!is_right) std::abort();
}

} // namespace emulated

inline void _tile_loadconfig(const void* from) {
  emulated::Tiles& all = emulated::tiles();
  std::memcpy(all.config, from, 64);
  if (all.config[0] > 1) std::abort();
  for (int tile = 0; all.config[0] && tile < 8; ++tile)
    if (emulated::num_rows(tile) > 16 || emulated::row_bytes(tile) > 64) std::abort();
  std::memset(all.tiles, 0, sizeof all.tiles);
}
inline void _tile_storeconfig(void* to) { std::memcpy(to, emulated::tiles().config, 64); }
inline void _tile_zero(int tile) {
  emulated::num_rows(tile);
  std::memset(emulated::tiles().tiles[tile].rows, 0, sizeof(emulated::Tile));
}
inline void _tile_loadd(int tile, const void* from, std::ptrdiff_t stride) {
  const int count = emulated::num_rows(tile), bytes = emulated::row_bytes(tile);
  for (int i = 0; i < count; ++i)
    std::memcpy(emulated::tiles().tiles[tile].rows[i], static_cast<const char*>(from) + i * stride, bytes);
}
inline void _tile_stored(int tile, void* to, std::ptrdiff_t stride) {
  const int count = emulated::num_rows(tile), bytes = emulated::row_bytes(tile);
  for (int i = 0; i < count; ++i)
    std::memcpy(static_cast<char*>(to) + i * stride, emulated::tiles().tiles[tile].rows[i], bytes);
}

// Sums of bfloat16 pairs in float32; numbers below the normal ones are zeros in these tiles' products, here they are not.
inline void _tile_dpbf16ps(int sums, int a, int b) {
  emulated::check_product(sums, a, b);
  emulated::Tile *to = emulated::tiles().tiles + sums, *left = emulated::tiles().tiles + a,
                 *right = emulated::tiles().tiles + b;
  __m512 even[16], odd[16];
  for (int k = 0; k < emulated::num_rows(b); ++k) {
    const __m512i pairs = emulated::load<__m512i>(right->rows[k]);
    even[k] = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    odd[k] = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xFFFF0000))));
  }
  for (int m = 0; m < emulated::num_rows(sums); ++m) {
    __m512 sum = emulated::load<__m512>(to->rows[m]);
    const auto halves = emulated::load<emulated::U16>(left->rows[m]);
    for (int k = 0; k < emulated::num_rows(b); ++k) {
      sum = emulated::widened(halves[2 * k]) * even[k] + sum;
      sum = emulated::widened(halves[2 * k + 1]) * odd[k] + sum;
    }
    emulated::store(to->rows[m], sum);
  }
}

// Sums of four products of signed bytes in 32 bits.
inline void _tile_dpbssd(int sums, int a, int b) {
  emulated::check_product(sums, a, b);
  emulated::Tile *to = emulated::tiles().tiles + sums, *left = emulated::tiles().tiles + a,
                 *right = emulated::tiles().tiles + b;
  emulated::I32 bytes[16][4];
  for (int k = 0; k < emulated::num_rows(b); ++k) {
    const auto four = emulated::load<emulated::I32>(right->rows[k]);
    for (int j = 0; j < 4; ++j)
      bytes[k][j] = emulated::as<emulated::I32>(emulated::as<emulated::U32>(four) << (24 - 8 * j)) >> 24;
  }
  for (int m = 0; m < emulated::num_rows(sums); ++m) {
    auto sum = emulated::load<emulated::U32>(to->rows[m]);
    const auto row = emulated::load<emulated::I8>(left->rows[m]);
    for (int k = 0; k < emulated::num_rows(b); ++k)
      for (int j = 0; j < 4; ++j)
        sum += emulated::as<emulated::U32>(static_cast<std::int32_t>(row[4 * k + j]) * bytes[k][j]);
    emulated::store(to->rows[m], sum);
  }
}

// ---- Linux's permission to use them, which an emulation needs not

#define syscall(...) 0L
