// Depthwise convolution, K x K, stride 1, as many zeros around the image as keep its size.
//
// A thread goes down a strip of kColumns columns of kBlock channels. The K rows of input that a row of results is made of
// lie in a ring in the first cache, as float32, so that each is converted once.

#pragma once

#include <algorithm>
#include <cstddef>

#include "scratch.hpp"
#include "threads.hpp"
#include "vectors/vectors.hpp"

namespace fastvlm::FASTVLM_LEVEL {

constexpr std::ptrdiff_t kDepthwiseChannels = 32; // of a block; weights and biases are padded to whole blocks

// A map (height, width, channels) and what is made of it.
template <typename Number>
struct Image {
  const Number* input;
  Number* output;
  const float* weight; // (K * K, padded channels)
  const float* bias;   // (padded channels)
  std::ptrdiff_t height, width, channels;

  std::ptrdiff_t padded() const { return (channels + kDepthwiseChannels - 1) / kDepthwiseChannels * kDepthwiseChannels; }
};

template <typename Number, int K>
class Strip {
 public:
  static constexpr int kColumns = 32;           // of results in a strip
  static constexpr int kStep = kRegisters / 2;  // of results whose sums are in registers
  static constexpr int kPlanes = std::max(1, static_cast<int>(64 / sizeof(Number)) / kLanes); // a cache line's channels
  static constexpr std::ptrdiff_t kBlock = kPlanes * kLanes;

  Strip(const Image<Number>& image, std::ptrdiff_t channel, std::ptrdiff_t column)
      : image_(image),
        column_(column),
        num_columns_(std::min<std::ptrdiff_t>(kColumns, image.width - column)),
        channel_(channel),
        padded_(image.padded()) {}

  void convolve(std::ptrdiff_t first, std::ptrdiff_t stop) {
    for (std::ptrdiff_t y = first - K / 2; y < first + K / 2; ++y) fill(y);
    for (std::ptrdiff_t y = first; y < stop; ++y) {
      fill(y + K / 2);
      for (int plane = 0; plane < kPlanes; ++plane)
        for (int x = 0; x < num_columns_; x += kStep) results(plane, y, x);
    }
  }

 private:
  static constexpr int kWide = kColumns + K - 1;
  static constexpr int kRowsAhead = 2; // that are asked for: single lines far apart are not foreseen by the CPU

  float* row(int plane, std::ptrdiff_t y) { return ring_[plane][static_cast<std::size_t>(y + K) % K]; }
  std::ptrdiff_t first_channel(int plane) const { return channel_ + plane * kLanes; }
  std::ptrdiff_t num_channels(int plane) const { return image_.channels - first_channel(plane); }

  // Puts row y of the input into the ring; what lies outside the image is zero.
  void fill(std::ptrdiff_t y) {
    const bool is_inside = y >= 0 && y < image_.height;
    const std::ptrdiff_t pitch = image_.width * image_.channels;
    for (int plane = 0; plane < kPlanes; ++plane) {
      float* to = row(plane, y);
      const std::ptrdiff_t count = num_channels(plane);
      const Number* line = image_.input + y * pitch + first_channel(plane);
      for (int j = 0; j < kWide; ++j, to += kLanes) {
        const std::ptrdiff_t x = column_ + j - K / 2;
        if (!is_inside || x < 0 || x >= image_.width || count <= 0) {
          store(to, zeros());
          continue;
        }
        const Number* from = line + x * image_.channels;
        store(to, count >= kLanes ? load(from) : load(from, count));
        if (plane == 0 && y + kRowsAhead < image_.height) __builtin_prefetch(from + kRowsAhead * pitch, 0, 3);
      }
    }
  }

  // kStep results from column x of the strip on.
  void results(int plane, std::ptrdiff_t y, int x) {
    if (num_channels(plane) <= 0) return;
    Floats sums[kStep];
    const Floats bias = load(image_.bias + first_channel(plane));
    UNROLLED
    for (int i = 0; i < kStep; ++i) sums[i] = bias;
    for (int ky = 0; ky < K; ++ky) add_row(row(plane, y + ky - K / 2) + x * kLanes, ky, plane, sums);
    const int count = std::min<int>(kStep, static_cast<int>(num_columns_) - x);
    Number* out = image_.output + (y * image_.width + column_ + x) * image_.channels + first_channel(plane);
    for (int i = 0; i < count; ++i, out += image_.channels) {
      if (num_channels(plane) >= kLanes) store(out, sums[i]);
      else store(out, sums[i], num_channels(plane));
    }
  }

  void add_row(const float* values, int ky, int plane, Floats (&sums)[kStep]) {
    const float* taps = image_.weight + ky * K * padded_ + first_channel(plane);
    Floats weight[K];
    UNROLLED
    for (int kx = 0; kx < K; ++kx) weight[kx] = load(taps + kx * padded_);
    asm("" : "+r"(values)); // one address: g++ 12 otherwise computes many, and keeps them in memory
    UNROLLED
    for (int j = 0; j < kStep + K - 1; ++j) {
      const Floats value = load(values + j * kLanes);
      UNROLLED
      for (int kx = 0; kx < K; ++kx)
        if (j - kx >= 0 && j - kx < kStep) sums[j - kx] = multiply_add(value, weight[kx], sums[j - kx]);
    }
  }

  alignas(64) float ring_[kPlanes][K][kWide * kLanes];
  const Image<Number>& image_;
  const std::ptrdiff_t column_, num_columns_, channel_, padded_;
};

template <int K, typename Number>
void depthwise(const Image<Number>& first, std::ptrdiff_t batch, int threads) {
  constexpr std::ptrdiff_t kBandRows = 32, kGroup = 128; // rows and channels that a thread takes
  constexpr std::ptrdiff_t kColumns = Strip<Number, K>::kColumns, kBlock = Strip<Number, K>::kBlock;
  const std::ptrdiff_t bands = parts(first.height, kBandRows), strips = parts(first.width, kColumns);
  const std::ptrdiff_t groups = parts(first.channels, kGroup), size = first.height * first.width * first.channels;
  in_parallel(batch * bands * strips * groups, threads, [&](std::size_t index) {
    const auto at = static_cast<std::ptrdiff_t>(index);
    const std::ptrdiff_t group = at % groups, strip = at / groups % strips, band = at / groups / strips % bands;
    const std::ptrdiff_t number = at / groups / strips / bands;
    Image<Number> image = first;
    image.input += number * size;
    image.output += number * size;
    const std::ptrdiff_t start = band * kBandRows, stop = std::min(start + kBandRows, first.height);
    const std::ptrdiff_t last = std::min((group + 1) * kGroup, first.channels);
    for (std::ptrdiff_t channel = group * kGroup; channel < last; channel += kBlock)
      Strip<Number, K>(image, channel, strip * kColumns).convolve(start, stop);
  });
}

} // namespace fastvlm::FASTVLM_LEVEL
