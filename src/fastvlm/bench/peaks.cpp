// Rates that no program on this machine exceeds: multiply-adds on registers alone, and reading memory.
// Each `fastvlm_peak_*` runs `count` rounds of twelve independent steps and returns the operations done (a multiply-add
// is two).
#include <cstddef>
#include <cstdint>

static volatile float sink_float;
static volatile int sink_int;

#define EACH(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
#define DECLARE(I) auto sum##I = start;
// KEEP: the register class, so that each sum stays in a register and no step is removed.
#define KEPT_ROUNDS(KEEP, START, OPERATIONS, END)                                                   \
    auto start = START;                                                                             \
    EACH(DECLARE)                                                                                   \
    for (long round = 0; round < count; ++round) {                                                  \
        EACH(STEP)                                                                                  \
        asm volatile("" : KEEP(sum0), KEEP(sum1), KEEP(sum2), KEEP(sum3), KEEP(sum4), KEEP(sum5));  \
        asm volatile("" : KEEP(sum6), KEEP(sum7), KEEP(sum8), KEEP(sum9), KEEP(sum10), KEEP(sum11)); \
    }                                                                                               \
    EACH(END)                                                                                       \
    return 12.0 * count * (OPERATIONS);

#if defined(__x86_64__)
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#define FUNCTION(TARGET, NAME) extern "C" __attribute__((target(TARGET))) double fastvlm_peak_##NAME(long count)
#define TO_FLOAT(I) sink_float = _mm256_cvtss_f32(sum##I);
#define TO_INT(I) sink_int = _mm256_extract_epi32(sum##I, 0);
#define TO_FLOAT_512(I) sink_float = _mm512_cvtss_f32(sum##I);
#define TO_INT_512(I) sink_int = _mm512_cvtsi512_si32(sum##I);

FUNCTION("avx2,fma", avx2_float32) {
    const __m256 a = _mm256_set1_ps(0.5f), b = _mm256_set1_ps(0.25f);
#define STEP(I) sum##I = _mm256_fmadd_ps(a, b, sum##I);
    KEPT_ROUNDS("+x", _mm256_setzero_ps(), 16, TO_FLOAT)
#undef STEP
}

// Pairs of 8-bit products in 16 bits, then in 32: two multiplications and an addition for 32 multiply-adds.
FUNCTION("avx2", avx2_int8) {
    __m256i a = _mm256_set1_epi8(3), ones = _mm256_set1_epi16(1);
#define STEP(I)                                                                                \
    asm volatile("" : "+x"(a));                                                                \
    sum##I = _mm256_add_epi32(sum##I, _mm256_madd_epi16(_mm256_maddubs_epi16(a, a), ones));
    KEPT_ROUNDS("+x", _mm256_setzero_si256(), 64, TO_INT)
#undef STEP
}

FUNCTION("avx2,avxvnni", avx2vnni_int8) {
    const __m256i a = _mm256_set1_epi8(3);
#define STEP(I) sum##I = _mm256_dpbusd_avx_epi32(sum##I, a, a);
    KEPT_ROUNDS("+x", _mm256_setzero_si256(), 64, TO_INT)
#undef STEP
}

FUNCTION("avx512f", avx512_float32) {
    const __m512 a = _mm512_set1_ps(0.5f), b = _mm512_set1_ps(0.25f);
#define STEP(I) sum##I = _mm512_fmadd_ps(a, b, sum##I);
    KEPT_ROUNDS("+v", _mm512_setzero_ps(), 32, TO_FLOAT_512)
#undef STEP
}

FUNCTION("avx512f,avx512bf16", avx512_bfloat16) {
    const __m512bh a = (__m512bh)_mm512_set1_epi16(0x3f00);
#define STEP(I) sum##I = _mm512_dpbf16_ps(sum##I, a, a);
    KEPT_ROUNDS("+v", _mm512_setzero_ps(), 64, TO_FLOAT_512)
#undef STEP
}

FUNCTION("avx512f,avx512vnni", avx512_int8) {
    const __m512i a = _mm512_set1_epi8(3);
#define STEP(I) sum##I = _mm512_dpbusd_epi32(sum##I, a, a);
    KEPT_ROUNDS("+v", _mm512_setzero_si512(), 128, TO_INT_512)
#undef STEP
}

struct TileConfig {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

extern "C" int fastvlm_may_use_tiles() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

#define TILE_FUNCTION(TARGET, NAME, PRODUCT, OPERATIONS)                         \
    FUNCTION(TARGET, NAME) {                                                     \
        TileConfig config;                                                       \
        asm volatile("" : "+m"(config));                                         \
        _tile_loadconfig(&config);                                               \
        _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);              \
        _tile_zero(4); _tile_zero(5);                                            \
        for (long round = 0; round < count; ++round) {                           \
            PRODUCT(0, 4, 5); PRODUCT(1, 4, 5); PRODUCT(2, 4, 5); PRODUCT(3, 4, 5); \
        }                                                                        \
        _tile_release();                                                         \
        return 4.0 * count * (OPERATIONS);                                       \
    }
TILE_FUNCTION("amx-tile,amx-bf16", amx_bfloat16, _tile_dpbf16ps, 2.0 * 16 * 16 * 32)
TILE_FUNCTION("amx-tile,amx-int8", amx_int8, _tile_dpbusd, 2.0 * 16 * 16 * 64)

extern "C" __attribute__((target("avx2"))) void fastvlm_read(const char* data, size_t bytes) {
    const auto* part = reinterpret_cast<const __m256i*>(data);
    __m256i a = {}, b = {}, c = {}, d = {};
    for (size_t i = 0; i + 4 <= bytes / 32; i += 4) {
        a = _mm256_xor_si256(a, _mm256_loadu_si256(part + i));
        b = _mm256_xor_si256(b, _mm256_loadu_si256(part + i + 1));
        c = _mm256_xor_si256(c, _mm256_loadu_si256(part + i + 2));
        d = _mm256_xor_si256(d, _mm256_loadu_si256(part + i + 3));
    }
    sink_int = _mm256_extract_epi32(_mm256_xor_si256(_mm256_xor_si256(a, b), _mm256_xor_si256(c, d)), 0);
}

#elif defined(__aarch64__)
#include <arm_neon.h>

#define TO_FLOAT(I) sink_float = vgetq_lane_f32(sum##I, 0);
#define TO_INT(I) sink_int = vgetq_lane_s32(sum##I, 0);

extern "C" double fastvlm_peak_neon_float32(long count) {
    const float32x4_t a = vdupq_n_f32(0.5f);
#define STEP(I) sum##I = vfmaq_f32(sum##I, a, a);
    KEPT_ROUNDS("+w", vdupq_n_f32(0), 8, TO_FLOAT)
#undef STEP
}

extern "C" __attribute__((target("arch=armv8.2-a+dotprod"))) double fastvlm_peak_neon_int8(long count) {
    const int8x16_t a = vdupq_n_s8(3);
#define STEP(I) sum##I = vdotq_s32(sum##I, a, a);
    KEPT_ROUNDS("+w", vdupq_n_s32(0), 32, TO_INT)
#undef STEP
}

extern "C" void fastvlm_read(const char* data, size_t bytes) {
    const auto* part = reinterpret_cast<const uint8_t*>(data);
    uint8x16_t a = vdupq_n_u8(0), b = a, c = a, d = a;
    for (size_t i = 0; i + 64 <= bytes; i += 64) {
        a = veorq_u8(a, vld1q_u8(part + i));
        b = veorq_u8(b, vld1q_u8(part + i + 16));
        c = veorq_u8(c, vld1q_u8(part + i + 32));
        d = veorq_u8(d, vld1q_u8(part + i + 48));
    }
    sink_int = vgetq_lane_u8(veorq_u8(veorq_u8(a, b), veorq_u8(c, d)), 0);
}
#endif
