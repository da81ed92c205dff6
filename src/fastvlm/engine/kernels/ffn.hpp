// Rows of pictures through linear layers in tile registers: one layer, or an FFN whose wide hidden map stays in cache.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <utility>

#include "gelu.hpp"
#include "lanes.hpp"
#include "scratch.hpp"
#include "threads.hpp"
#include "tiles.hpp"

namespace fastvlm {

constexpr std::ptrdiff_t kBlockRows = 512;  // that a thread takes through both layers: with their maps half a cache
constexpr std::ptrdiff_t kHiddenPart = 384; // hidden channels at a time: a panel of the second layer stays in L1

struct Layer {
  const Bfloat16* weight; // (outputs / 32, inputs / 32, 2, 16, 16, 2), see tiles.hpp
  const float* bias;      // (outputs,)
  std::ptrdiff_t inputs, outputs;

  const Bfloat16* panel(std::ptrdiff_t index, std::ptrdiff_t step = 0) const {
    return weight + (index * (inputs / kPanel) + step) * kStepSize;
  }
};

// Where a block of 16 x 32 sums goes: `to` is the first row's 32 numbers, of `rows` rows that exist.
struct Destination {
  Bfloat16* to = nullptr;
  std::ptrdiff_t stride = 0, rows = 0;
};

// Two blocks of sums in turn: while one is computed, `write(sums, destination, row)` takes the other away, some rows
// at a time. It holds nothing whose address anybody knows, so that all of it stays in registers.
template <typename Write>
class Finisher {
 public:
  Finisher(const Write& write, float* two_blocks) : write_(write), free_(two_blocks), full_(two_blocks + kSums) {}

  // The sums in the tiles are the next block; what is left of the one before is done first.
  void take(const Destination& destination) {
    some(kTileRows);
    store_sums(free_, kPanel);
    std::swap(free_, full_);
    destination_ = destination;
    next_ = 0;
  }

  void some(int rows) {
    const int stop = std::min(next_ + rows, kTileRows);
    for (; next_ < stop; ++next_) write_(full_ + next_ * kPanel, destination_, next_);
  }

 private:
  const Write write_;
  float *free_, *full_;
  Destination destination_;
  int next_ = kTileRows;
};

inline __m512i as_bits(__m512bh x) {
  __m512i bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline __m512i rounded(__m512 low, __m512 high) { return as_bits(_mm512_cvtne2ps_pbh(high, low)); }

// 32 bfloat16 as two registers of float32, in their order.
struct Widened {
  __m512 low, high;
  explicit Widened(const Bfloat16* from)
      : low(widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))),
        high(widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + kLanes)))) {}

 private:
  static __m512 widen(__m256i x) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16)); }
};

struct WriteGelu {
  Gelu gelu;
  void operator()(const float* sums, const Destination& where, int row) const {
    const __m512i numbers = rounded(gelu(_mm512_load_ps(sums)), gelu(_mm512_load_ps(sums + kLanes)));
    _mm512_storeu_si512(where.to + row * where.stride, numbers);
  }
};

struct WritePlain {
  void operator()(const float* sums, const Destination& where, int row) const {
    if (row >= where.rows) return;
    const __m512i numbers = rounded(_mm512_load_ps(sums), _mm512_load_ps(sums + kLanes));
    _mm512_storeu_si512(where.to + row * where.stride, numbers);
  }
};

// Adds to what is there.
struct WriteAdded {
  void operator()(const float* sums, const Destination& where, int row) const {
    if (row >= where.rows) return;
    Bfloat16* to = where.to + row * where.stride;
    const Widened there(to);
    const __m512 low = _mm512_add_ps(_mm512_load_ps(sums), there.low);
    const __m512 high = _mm512_add_ps(_mm512_load_ps(sums + kLanes), there.high);
    _mm512_storeu_si512(to, rounded(low, high));
  }
};

// Reads ahead what the next panel needs, a few lines at each step, so that all of it is in L2 when its turn comes.
class ReadAhead {
 public:
  ReadAhead(const Bfloat16* from, std::ptrdiff_t rows)
      : at_(reinterpret_cast<const char*>(from)), lines_(static_cast<int>(kPanel * kTileRows / rows)) {}
  void some() {
    for (int line = 0; line < lines_; ++line, at_ += 64) _mm_prefetch(at_, _MM_HINT_T1);
  }

 private:
  const char* at_;
  int lines_;
};

// `rows` rows (a multiple of 16) of `input`, all panels of `layer`, in steps `first_step` on of its inputs.
template <typename Write>
void apply(const Bfloat16* input, std::ptrdiff_t input_stride, std::ptrdiff_t rows, std::ptrdiff_t real_rows,
           const Layer& layer, Bfloat16* output, std::ptrdiff_t output_stride, std::ptrdiff_t first_panel,
           std::ptrdiff_t panels, const Write& write) {
  alignas(64) float two_blocks[2 * kSums];
  Finisher<Write> finisher(write, two_blocks);
  const std::ptrdiff_t steps = layer.inputs / kPanel;
  const int rows_aside = static_cast<int>((kTileRows + steps - 1) / steps);
  for (std::ptrdiff_t panel = first_panel; panel < first_panel + panels; ++panel) {
    ReadAhead ahead(layer.panel(panel + 1), rows);
    for (std::ptrdiff_t row = 0; row < rows; row += kTileRows) {
      begin_with(layer.bias + panel * kPanel);
      add_products(input + row * input_stride, input_stride, layer.panel(panel), steps, [&] {
        ahead.some();
        finisher.some(rows_aside);
      });
      Bfloat16* to = output + row * output_stride + (panel - first_panel) * kPanel;
      finisher.take({to, output_stride, real_rows - row});
    }
  }
  finisher.some(kTileRows);
}

class FfnBlock {
 public:
  FfnBlock(const Layer& widen, const Layer& narrow, const Bfloat16* input, Bfloat16* output, std::ptrdiff_t real_rows)
      : widen_(widen), narrow_(narrow), channels_(widen.inputs), sums_stride_(widen.inputs + kPanel), real_rows_(real_rows),
        rows_((real_rows + kTileRows - 1) / kTileRows * kTileRows), input_(input), output_(output) {}

  void run() {
    if (rows_ != real_rows_) pad();
    for (std::ptrdiff_t first = 0; first < widen_.outputs; first += kHiddenPart) {
      const std::ptrdiff_t width = std::min(kHiddenPart, widen_.outputs - first);
      apply(input_, channels_, rows_, rows_, widen_, hidden(), width, first / kPanel, width / kPanel, WriteGelu{});
      add_part(first, width);
    }
  }

 private:
  static Bfloat16* hidden() { return scratch<Bfloat16, 0>(kBlockRows * kHiddenPart); }
  float* sums() { return scratch<float, 1>(rows_ * sums_stride_); }

  // Rows that are missing to a multiple of 16 are zeros.
  void pad() {
    Bfloat16* padded = scratch<Bfloat16, 2>(rows_ * channels_);
    std::memcpy(padded, input_, real_rows_ * channels_ * sizeof(Bfloat16));
    std::memset(padded + real_rows_ * channels_, 0, (rows_ - real_rows_) * channels_ * sizeof(Bfloat16));
    input_ = padded;
  }

  // What `width` hidden channels from `first` on add to the result.
  void add_part(std::ptrdiff_t first, std::ptrdiff_t width) {
    alignas(64) float two_blocks[2 * kSums];
    Finisher<WriteAdded> finisher({}, two_blocks);
    const bool is_last = first + width == widen_.outputs;
    const std::ptrdiff_t steps = width / kPanel;
    const int rows_aside = static_cast<int>((kTileRows + steps - 1) / steps);
    for (std::ptrdiff_t panel = 0; panel < channels_ / kPanel; ++panel) {
      ReadAhead ahead(narrow_.panel(panel + 1, first / kPanel), rows_);
      for (std::ptrdiff_t row = 0; row < rows_; row += kTileRows) {
        float* const so_far = sums() + row * sums_stride_ + panel * kPanel;
        if (first) load_sums(so_far, sums_stride_);
        else begin_with(narrow_.bias + panel * kPanel);
        add_products(hidden() + row * width, width, narrow_.panel(panel, first / kPanel), steps,
                     [&] {
                       ahead.some();
                       finisher.some(rows_aside);
                     });
        if (is_last)
          finisher.take({output_ + row * channels_ + panel * kPanel, channels_, real_rows_ - row});
        else
          store_sums(so_far, sums_stride_);
      }
    }
    finisher.some(kTileRows);
  }

  const Layer &widen_, &narrow_;
  const std::ptrdiff_t channels_, sums_stride_, real_rows_, rows_; // a stride of their own: see docs/performance.md
  const Bfloat16* input_;
  Bfloat16* output_;
};

} // namespace fastvlm
