// Depthwise convolution, K x K, stride 1, as many zeros around the image as keep its size.
//
// A thread goes down a strip of kColumns columns of 32 channels. The K rows of input that a row of results is made of
// lie in a ring in the first cache, as float32, so that each is converted once.

#pragma once

#include <algorithm>
#include <cstddef>

#include "simd.hpp"
#include "threads.hpp"

namespace fastvlm::encoder {

constexpr int kColumns = 32; // of results in a strip
constexpr int kStep = 16;    // of results whose sums are in registers
constexpr int kBandRows = 32;
constexpr int kGroupBlocks = 4; // of channels that a thread takes: small maps with many channels are for several threads too
constexpr int kRowsAhead = 2; // that are asked for: single lines far apart are not foreseen by the CPU

struct Image {
  const Bfloat16* input;
  Bfloat16* output;
  const float* weight; // (blocks, 2, K * K, 16): even channels of a block of 32, odd channels
  const float* bias;   // (blocks, 2, 16)
  std::ptrdiff_t height, width, channels;
};

template <int K>
class Strip {
 public:
  Strip(const Image& image, std::ptrdiff_t block, std::ptrdiff_t column)
      : image_(image),
        column_(column),
        num_columns_(std::min<std::ptrdiff_t>(kColumns, image.width - column)),
        channel_(block * kBlock),
        mask_(first_lanes(image.channels - channel_)),
        weight_(image.weight + block * 2 * K * K * kLanes),
        bias_(image.bias + block * kBlock) {}

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

  // Puts row y of the input into the ring; what lies outside the image is zero.
  void fill(std::ptrdiff_t y) {
    float *even = row(0, y), *odd = row(1, y);
    const bool is_inside = y >= 0 && y < image_.height;
    const std::ptrdiff_t pitch = image_.width * image_.channels;
    const Bfloat16* line = image_.input + y * pitch + channel_;
    for (int j = 0; j < kWide; ++j, even += kLanes, odd += kLanes) {
      const std::ptrdiff_t x = column_ + j - K / 2;
      __m512i values = _mm512_setzero_si512();
      if (is_inside && x >= 0 && x < image_.width) {
        values = _mm512_maskz_loadu_epi16(mask_, line + x * image_.channels);
        _mm_prefetch(line + kRowsAhead * pitch + x * image_.channels, _MM_HINT_T0);
      }
      _mm512_store_ps(even, even_lanes(values));
      _mm512_store_ps(odd, odd_lanes(values));
    }
  }

  // kStep results from column x of the strip on.
  void results(std::ptrdiff_t y, int x) {
    alignas(64) float sums[2][kStep][kLanes];
    for (int plane = 0; plane < 2; ++plane) add_up(plane, y, x, sums[plane]);
    const int count = std::min<int>(kStep, num_columns_ - x);
    Bfloat16* out = image_.output + (y * image_.width + column_ + x) * image_.channels + channel_;
    for (int i = 0; i < count; ++i, out += image_.channels)
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
  const Image& image_;
  const Interleaved interleaved_;
  const std::ptrdiff_t column_, num_columns_, channel_;
  const __mmask32 mask_;
  const float *weight_, *bias_;
};

inline std::ptrdiff_t parts(std::ptrdiff_t whole, std::ptrdiff_t size) { return (whole + size - 1) / size; }

template <int K>
void depthwise(const Image& first, std::ptrdiff_t batch, int threads) {
  const std::ptrdiff_t bands = parts(first.height, kBandRows), blocks = parts(first.channels, kBlock);
  const std::ptrdiff_t strips = parts(first.width, kColumns), size = first.height * first.width * first.channels;
  const std::ptrdiff_t groups = parts(blocks, kGroupBlocks);
  in_parallel(batch * bands * strips * groups, threads, [&](std::size_t index) {
    const auto at = static_cast<std::ptrdiff_t>(index);
    const std::ptrdiff_t group = at % groups, strip = at / groups % strips, band = at / groups / strips % bands;
    const std::ptrdiff_t number = at / groups / strips / bands;
    Image image = first;
    image.input += number * size;
    image.output += number * size;
    const std::ptrdiff_t start = band * kBandRows, stop = std::min(start + kBandRows, first.height);
    const std::ptrdiff_t last = std::min((group + 1) * kGroupBlocks, blocks);
    for (std::ptrdiff_t block = group * kGroupBlocks; block < last; ++block)
      Strip<K>(image, block, strip * kColumns).convolve(start, stop);
  });
}

} // namespace fastvlm::encoder
