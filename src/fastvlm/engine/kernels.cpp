// Two kernels of the encoder for CPUs with AVX-512 and bfloat16, where torch's own leave time lying about.
//
// A plain C interface and no headers of torch's, so that any g++ or clang++ compiles it in seconds, and what it makes
// does not depend on the version of torch. Every tensor is bfloat16, contiguous, and holds at least one element.

#include <dlfcn.h>
#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512DQ__) || !defined(__AVX512BF16__)
#error "this CPU has no AVX-512 with bfloat16"
#endif

#ifdef __clang__
#define UNROLLED _Pragma("unroll")
#else
#define UNROLLED _Pragma("GCC unroll 32")
#endif

namespace {

using Bfloat16 = std::uint16_t;

constexpr int kLanes = 16;         // float32 numbers in a register
constexpr int kBlock = 2 * kLanes; // bfloat16 numbers in a register: one cache line

// ---- Threads: those that torch has, from the OpenMP library that it has loaded. One more pool would fight with them.

using OpenMpParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

OpenMpParallel openmp_parallel() {
  static const auto found = reinterpret_cast<OpenMpParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return found;
}

// Calls work(0) ... work(count - 1), each once, on up to `threads` threads.
template <typename Work>
void in_parallel(std::size_t count, int threads, const Work& work) {
  struct Shared {
    const Work& work;
    std::size_t count;
    std::atomic<std::size_t> next;
  } shared{work, count, {0}};
  const auto drain = [](void* data) {
    auto& all = *static_cast<Shared*>(data);
    for (std::size_t i = all.next++; i < all.count; i = all.next++) all.work(i);
  };
  const auto wanted = static_cast<unsigned>(std::min<std::size_t>(count, threads));
  if (wanted > 1 && openmp_parallel()) {
    openmp_parallel()(drain, &shared, wanted, 0);
  } else {
    drain(&shared);
  }
}

// ---- bfloat16 <-> float32. The even lanes of a register are one float32 register, the odd ones another.

__mmask32 first_lanes(std::size_t count) {
  return count >= kBlock ? ~__mmask32{0} : (__mmask32{1} << count) - 1;
}

__m512 even_lanes(__m512i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)); }

__m512 odd_lanes(__m512i x) {
  return _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(static_cast<int>(0xFFFF0000))));
}

// Rounded to nearest, ties to even.
struct Interleaved {
  __m512i order;
  Interleaved() {
    alignas(64) Bfloat16 lanes[kBlock];
    for (int i = 0; i < kBlock; ++i) lanes[i] = static_cast<Bfloat16>(i / 2 + (i % 2) * kLanes);
    order = _mm512_load_si512(lanes);
  }
  __m512i operator()(__m512 even, __m512 odd) const {
    __m512bh halves = _mm512_cvtne2ps_pbh(odd, even);
    __m512i bits;
    std::memcpy(&bits, &halves, sizeof bits);
    return _mm512_permutexvar_epi16(order, bits);
  }
};

// ---- GELU: x times the normal distribution's Phi(x), a cubic in each of 31 intervals; the product is 1.5e-6 off at most.

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

void gelu_run(Bfloat16* data, std::size_t count) {
  const Gelu gelu;
  const Interleaved interleaved;
  for (std::size_t i = 0; i < count; i += kBlock) {
    const __mmask32 mask = first_lanes(count - i);
    const __m512i x = _mm512_maskz_loadu_epi16(mask, data + i);
    _mm512_mask_storeu_epi16(data + i, mask, interleaved(gelu(even_lanes(x)), gelu(odd_lanes(x))));
  }
}

// ---- Depthwise convolution, K x K, stride 1, as many zeros around the picture as keep its size.
//
// A thread goes down a strip of kColumns columns of 32 channels. The K rows of input that a row of results is made of
// lie in a ring in the first cache, as float32, so that each is converted once.

constexpr int kColumns = 32; // of results in a strip
constexpr int kStep = 16;    // of results whose sums are in registers
constexpr int kBandRows = 32;

struct Picture {
  const Bfloat16* input;
  Bfloat16* output;
  const float* weight; // (blocks, 2, K * K, 16): even channels of a block of 32, odd channels
  const float* bias;   // (blocks, 2, 16)
  std::ptrdiff_t height, width, channels;
};

template <int K>
class Strip {
 public:
  Strip(const Picture& picture, std::ptrdiff_t block, std::ptrdiff_t column)
      : picture_(picture),
        column_(column),
        num_columns_(std::min<std::ptrdiff_t>(kColumns, picture.width - column)),
        channel_(block * kBlock),
        mask_(first_lanes(picture.channels - channel_)),
        weight_(picture.weight + block * 2 * K * K * kLanes),
        bias_(picture.bias + block * kBlock) {}

  void convolve(std::ptrdiff_t first, std::ptrdiff_t stop) {
    for (std::ptrdiff_t y = first - K / 2; y < first + K / 2; ++y) fill(y);
    for (std::ptrdiff_t y = first; y < stop; ++y) {
      fill(y + K / 2);
      for (int x = 0; x < num_columns_; x += kStep) results(y, x);
    }
  }

 private:
  static constexpr int kWide = kColumns + K - 1;

  float* row(int plane, std::ptrdiff_t y) {
    return ring_[plane][static_cast<std::size_t>(y + K) % K];
  }

  // Puts row y of the input into the ring; what lies outside the picture is zero.
  void fill(std::ptrdiff_t y) {
    float *even = row(0, y), *odd = row(1, y);
    const bool is_inside = y >= 0 && y < picture_.height;
    const Bfloat16* line = picture_.input + y * picture_.width * picture_.channels + channel_;
    for (int j = 0; j < kWide; ++j, even += kLanes, odd += kLanes) {
      const std::ptrdiff_t x = column_ + j - K / 2;
      __m512i values = _mm512_setzero_si512();
      if (is_inside && x >= 0 && x < picture_.width)
        values = _mm512_maskz_loadu_epi16(mask_, line + x * picture_.channels);
      _mm512_store_ps(even, even_lanes(values));
      _mm512_store_ps(odd, odd_lanes(values));
    }
  }

  // kStep results from column x of the strip on.
  void results(std::ptrdiff_t y, int x) {
    alignas(64) float sums[2][kStep][kLanes];
    for (int plane = 0; plane < 2; ++plane) add_up(plane, y, x, sums[plane]);
    const int count = std::min<int>(kStep, num_columns_ - x);
    Bfloat16* out = picture_.output + (y * picture_.width + column_ + x) * picture_.channels + channel_;
    for (int i = 0; i < count; ++i, out += picture_.channels)
      _mm512_mask_storeu_epi16(out, mask_, interleaved_(_mm512_load_ps(sums[0][i]), _mm512_load_ps(sums[1][i])));
  }

  void add_up(int plane, std::ptrdiff_t y, int x, float (*result)[kLanes]) {
    __m512 sums[kStep];
    const __m512 bias = _mm512_loadu_ps(bias_ + plane * kLanes);
    UNROLLED
    for (int i = 0; i < kStep; ++i) sums[i] = bias;
    const float* taps = weight_ + plane * K * K * kLanes;
    for (int ky = 0; ky < K; ++ky, taps += K * kLanes) {
      const float* values = row(plane, y + ky - K / 2) + x * kLanes;
      asm("" : "+r"(values), "+r"(taps)); // one address each: g++ 12 otherwise computes 22, and keeps them in memory
      __m512 weight[K];
      UNROLLED
      for (int kx = 0; kx < K; ++kx) weight[kx] = _mm512_loadu_ps(taps + kx * kLanes);
      UNROLLED
      for (int j = 0; j < kStep + K - 1; ++j) {
        const __m512 value = _mm512_load_ps(values + j * kLanes);
        UNROLLED
        for (int kx = 0; kx < K; ++kx)
          if (j - kx >= 0 && j - kx < kStep) sums[j - kx] = _mm512_fmadd_ps(value, weight[kx], sums[j - kx]);
      }
    }
    UNROLLED
    for (int i = 0; i < kStep; ++i) _mm512_store_ps(result[i], sums[i]);
  }

  alignas(64) float ring_[2][K][kWide * kLanes];
  const Picture& picture_;
  const Interleaved interleaved_;
  const std::ptrdiff_t column_, num_columns_, channel_;
  const __mmask32 mask_;
  const float *weight_, *bias_;
};

std::ptrdiff_t parts(std::ptrdiff_t whole, std::ptrdiff_t size) { return (whole + size - 1) / size; }

template <int K>
void depthwise(const Picture& first, std::ptrdiff_t batch, int threads) {
  const std::ptrdiff_t bands = parts(first.height, kBandRows), blocks = parts(first.channels, kBlock);
  const std::ptrdiff_t strips = parts(first.width, kColumns), size = first.height * first.width * first.channels;
  in_parallel(batch * bands * strips, threads, [&](std::size_t index) {
    const auto at = static_cast<std::ptrdiff_t>(index);
    const std::ptrdiff_t strip = at % strips, band = at / strips % bands, image = at / strips / bands;
    Picture picture = first;
    picture.input += image * size;
    picture.output += image * size;
    const std::ptrdiff_t start = band * kBandRows, stop = std::min(start + kBandRows, first.height);
    for (std::ptrdiff_t block = 0; block < blocks; ++block)
      Strip<K>(picture, block, strip * kColumns).convolve(start, stop);
  });
}

} // namespace

extern "C" {

// What Python checks before it calls anything else.
int fastvlm_interface() { return 1; }

// 1 if several threads can be used.
int fastvlm_has_threads() { return openmp_parallel() != nullptr; }

// Exact GELU of `count` numbers, in place.
void fastvlm_gelu(Bfloat16* data, std::size_t count, int threads) {
  constexpr std::size_t kPart = 1 << 16;
  in_parallel((count + kPart - 1) / kPart, threads, [=](std::size_t part) {
    gelu_run(data + part * kPart, std::min(kPart, count - part * kPart));
  });
}

// (batch, height, width, channels) -> the same shape; `kernel` is 3 or 7, else 1 is returned and nothing done.
int fastvlm_depthwise(const Bfloat16* input, Bfloat16* output, const float* weight, const float* bias,
                      std::ptrdiff_t batch, std::ptrdiff_t height, std::ptrdiff_t width, std::ptrdiff_t channels,
                      int kernel, int threads) {
  const Picture picture{input, output, weight, bias, height, width, channels};
  if (kernel == 7) {
    depthwise<7>(picture, batch, threads);
  } else if (kernel == 3) {
    depthwise<3>(picture, batch, threads);
  } else {
    return 1;
  }
  return 0;
}
}
