// Vectors of four float32 numbers: NEON of AArch64.

#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace fastvlm::FASTVLM_LEVEL {

using Bfloat16 = std::uint16_t;
using Floats = float32x4_t;
using Ints = int32x4_t; // int32, or 8 of int16, or 16 of int8

constexpr int kLanes = 4;      // float32 numbers in a register
constexpr int kRegisters = 32; // vector registers
constexpr bool kHasBfloat16Pairs = false; // products of bfloat16 as they are

namespace detail {

inline std::size_t bytes(std::ptrdiff_t count, std::size_t each) {
  return static_cast<std::size_t>(count > kLanes ? kLanes : count < 0 ? 0 : count) * each;
}

inline uint16x4_t rounded_to_bfloat16(float32x4_t values) {
  const uint32x4_t bits = vreinterpretq_u32_f32(values);
  const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
  const uint32x4_t nearest = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7FFF)));
  const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000)); // NaN stays NaN
  return vshrn_n_u32(vbslq_u32(vceqq_f32(values, values), nearest, quiet), 16);
}

} // namespace detail

inline Floats zeros() { return vdupq_n_f32(0); }
inline Floats broadcast(float value) { return vdupq_n_f32(value); }
inline Floats broadcast(const float* from) { return vld1q_dup_f32(from); }

inline Floats load(const float* from) { return vld1q_f32(from); }
inline Floats load(const Bfloat16* from) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(from), 16)); }
// The first `count` numbers; the other lanes are zero, and their memory is not read.
template <typename Number>
inline Floats load(const Number* from, std::ptrdiff_t count) {
  Number some[kLanes] = {};
  std::memcpy(some, from, detail::bytes(count, sizeof(Number)));
  return load(some);
}

inline void store(float* to, Floats values) { vst1q_f32(to, values); }
// Rounded to nearest, ties to even.
inline void store(Bfloat16* to, Floats values) { vst1_u16(to, detail::rounded_to_bfloat16(values)); }
template <typename Number>
inline void store(Number* to, Floats values, std::ptrdiff_t count) {
  Number some[kLanes];
  store(some, values);
  std::memcpy(to, some, detail::bytes(count, sizeof(Number)));
}

inline Floats multiply_add(Floats a, Floats b, Floats c) { return vfmaq_f32(c, a, b); }     // a * b + c
inline Floats subtract_product(Floats c, Floats a, Floats b) { return vfmsq_f32(c, a, b); } // c - a * b

// `b` where either is NaN.
inline Floats smaller(Floats a, Floats b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
inline Floats larger(Floats a, Floats b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }

inline Floats nearest_integers(Floats x) { return vrndnq_f32(x); }

// x times 2 to the power of `powers`, integers of -126 to 127.
inline Floats times_power_of_2(Floats x, Floats powers) {
  const int32x4_t exponents = vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(powers), vdupq_n_s32(127)), 23);
  return vmulq_f32(x, vreinterpretq_f32_s32(exponents));
}

// The sign of `sign` on the magnitude of `x`.
inline Floats with_sign(Floats x, Floats sign) { return vbslq_f32(vdupq_n_u32(0x80000000), sign, x); }

// a where `x` is at least `limit`, else b.
inline Floats where_at_least(Floats x, Floats limit, Floats a, Floats b) {
  return vbslq_f32(vcgeq_f32(x, limit), a, b);
}

inline float sum(Floats x) { return vaddvq_f32(x); }
inline float largest(Floats x) { return vmaxvq_f32(x); }

// Integers.

inline Ints load_ints(const void* from) { return vreinterpretq_s32_u8(vld1q_u8(static_cast<const std::uint8_t*>(from))); }
inline void store_ints(void* to, Ints values) { vst1q_u8(static_cast<std::uint8_t*>(to), vreinterpretq_u8_s32(values)); }
inline Ints no_ints() { return vdupq_n_s32(0); }
inline Ints broadcast_int(std::int32_t value) { return vdupq_n_s32(value); }
inline Ints nearest_ints(Floats x) { return vcvtnq_s32_f32(x); }
inline Floats to_floats(Ints x) { return vcvtq_f32_s32(x); }
inline Ints sum_of(Ints a, Ints b) { return vaddq_s32(a, b); } // int32

// 2 * kLanes numbers of 8 bits as int16.
inline Ints widen_int8(const std::int8_t* from) { return vreinterpretq_s32_s16(vmovl_s8(vld1_s8(from))); }

// sums + a[2 i] * b[2 i] + a[2 i + 1] * b[2 i + 1], of int16.
inline Ints add_pairs(Ints sums, Ints a, Ints b) {
  const int16x8_t left = vreinterpretq_s16_s32(a), right = vreinterpretq_s16_s32(b);
  const int32x4_t first = vmull_s16(vget_low_s16(left), vget_low_s16(right));
  return vaddq_s32(sums, vpaddq_s32(first, vmull_high_s16(left, right)));
}

// sums + the four products a[4 i + j] * b[4 i + j] of unsigned with signed 8-bit integers.
inline Ints add_quads(Ints sums, Ints a, Ints b) {
  const uint8x16_t left = vreinterpretq_u8_s32(a);
  const int8x16_t right = vreinterpretq_s8_s32(b);
#if defined(__ARM_FEATURE_MATMUL_INT8)
  return vusdotq_s32(sums, left, right);
#else
  const int16x8_t low = vmulq_s16(vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(left))), vmovl_s8(vget_low_s8(right)));
  const int16x8_t high = vmulq_s16(vreinterpretq_s16_u16(vmovl_high_u8(left)), vmovl_high_s8(right));
  return vaddq_s32(sums, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
#endif
}

// kLanes integers of 0 to 255 as bytes.
inline void store_uint8(std::uint8_t* to, Ints values) {
  const uint16x4_t words = vqmovun_s32(values);
  const uint8x8_t bytes = vqmovn_u16(vcombine_u16(words, words));
  vst1_lane_u32(reinterpret_cast<std::uint32_t*>(to), vreinterpret_u32_u8(bytes), 0);
}

#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
// The same of bfloat16, sums of float32.
inline Floats add_bfloat16_pairs(Floats sums, Ints a, Ints b) {
  return vbfdotq_f32(sums, vreinterpretq_bf16_s32(a), vreinterpretq_bf16_s32(b));
}
#endif

inline Ints as_ints(Floats x) { return vreinterpretq_s32_f32(x); } // the same bits

// int32 within the range of int16 as int16: the numbers of `low`, then those of `high`.
inline Ints narrow_to_int16(Ints low, Ints high) {
  return vreinterpretq_s32_s16(vqmovn_high_s32(vqmovn_s32(low), high));
}

// kLanes pairs of bfloat16: the first of each, and the second.
inline void load_scales_and_zeros(const std::uint32_t* from, Floats& first, Floats& second) {
  const uint32x4_t both = vld1q_u32(from);
  first = vreinterpretq_f32_u32(vshlq_n_u32(both, 16));
  second = vreinterpretq_f32_u32(vandq_u32(both, vdupq_n_u32(0xFFFF0000u)));
}

// Bits `shift` to `shift` + 3 of kLanes bytes, minus 8, as pairs of int16: one of `even`, one of `odd`.
inline Ints nibble_pairs(const std::uint8_t* even, const std::uint8_t* odd, int shift) {
  std::int16_t pairs[2 * kLanes];
  for (int i = 0; i < kLanes; ++i) {
    pairs[2 * i] = static_cast<std::int16_t>((even[i] >> shift & 15) - 8);
    pairs[2 * i + 1] = static_cast<std::int16_t>((odd[i] >> shift & 15) - 8);
  }
  return vreinterpretq_s32_s16(vld1q_s16(pairs));
}

// Transposes kLanes rows of kLanes numbers of 32 bits.
inline void transpose(Ints (&rows)[kLanes]) {
  const int32x4x2_t first = vtrnq_s32(rows[0], rows[1]), second = vtrnq_s32(rows[2], rows[3]);
  for (int i = 0; i < 2; ++i) {
    rows[i] = vcombine_s32(vget_low_s32(first.val[i]), vget_low_s32(second.val[i]));
    rows[i + 2] = vcombine_s32(vget_high_s32(first.val[i]), vget_high_s32(second.val[i]));
  }
}

// 0, 1, 2, ...
inline Floats lane_numbers() {
  const float numbers[kLanes] = {0, 1, 2, 3};
  return vld1q_f32(numbers);
}

// While it lives, the thread's numbers too small for a normal one are zeros: on some CPUs sums of them would take many
// times as long.
class FlushDenormals {
 public:
  FlushDenormals() : before_(control()) { set_control(before_ | kFlushToZero); }
  ~FlushDenormals() { set_control(before_); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  static constexpr std::uint64_t kFlushToZero = std::uint64_t{1} << 24;
  static std::uint64_t control() {
    std::uint64_t value;
    asm volatile("mrs %0, fpcr" : "=r"(value));
    return value;
  }
  static void set_control(std::uint64_t value) { asm volatile("msr fpcr, %0" : : "r"(value) : "memory"); }
  const std::uint64_t before_;
};

// `yield` takes no time on most CPUs.
inline void pause() { asm volatile("isb" ::: "memory"); }

} // namespace fastvlm::FASTVLM_LEVEL
