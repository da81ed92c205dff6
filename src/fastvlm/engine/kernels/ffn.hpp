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
    if (row >= where.rows) return;
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
      : at_(reinterpret_cast<const char*>(from)),
        lines_(static_cast<int>((kPanel * kTileRows + rows - 1) / rows)) {}
  void some() {
    for (int line = 0; line < lines_; ++line, at_ += 64) _mm_prefetch(at_, _MM_HINT_T1);
  }

 private:
  const char* at_;
  int lines_;
};

// Rows of numbers one after the other, as many as make whole tiles: rows that are missing are zeros.
struct Rows {
  const Bfloat16* data;
  std::ptrdiff_t real, padded, width;

  Rows(const Bfloat16* from, std::ptrdiff_t count, std::ptrdiff_t numbers)
      : data(from), real(count), padded((count + kTileRows - 1) / kTileRows * kTileRows), width(numbers) {
    if (padded == real) return;
    Bfloat16* copy = scratch<Bfloat16, 2>(padded * width);
    std::memcpy(copy, from, real * width * sizeof(Bfloat16));
    std::memset(copy + real * width, 0, (padded - real) * width * sizeof(Bfloat16));
    data = copy;
  }
};

// Some panels of `layer` on `input`; `output` is where the first of them goes.
template <typename Write>
void apply(const Rows& input, const Layer& layer, Bfloat16* output, std::ptrdiff_t output_stride,
           std::ptrdiff_t first_panel, std::ptrdiff_t panels, const Write& write) {
  alignas(64) float two_blocks[2 * kSums];
  Finisher<Write> finisher(write, two_blocks);
  const std::ptrdiff_t steps = layer.inputs / kPanel;
  const int rows_aside = static_cast<int>((kTileRows + steps - 1) / steps);
  for (std::ptrdiff_t panel = 0; panel < panels; ++panel) {
    ReadAhead ahead(layer.panel(first_panel + panel + 1), input.padded);
    for (std::ptrdiff_t row = 0; row < input.padded; row += kTileRows) {
      begin_with(layer.bias + (first_panel + panel) * kPanel);
      add_products(input.data + row * input.width, input.width, layer.panel(first_panel + panel), steps, [&] {
        ahead.some();
        finisher.some(rows_aside);
      });
      finisher.take({output + row * output_stride + panel * kPanel, output_stride, input.real - row});
    }
  }
  finisher.some(kTileRows);
}

// output += narrow(gelu(widen(input))), some hidden channels at a time.
class FfnBlock {
 public:
  FfnBlock(const Layer& widen, const Layer& narrow, const Rows& input, Bfloat16* output)
      : widen_(widen), narrow_(narrow), input_(input), output_(output), sums_stride_(input.width + kPanel),
        hidden_(scratch<Bfloat16, 0>(input.padded * kHiddenPart)), sums_(scratch<float, 1>(input.padded * sums_stride_)) {}

  void run() {
    for (std::ptrdiff_t first = 0; first < widen_.outputs; first += kHiddenPart) {
      const std::ptrdiff_t width = std::min(kHiddenPart, widen_.outputs - first);
      apply(input_, widen_, hidden_, width, first / kPanel, width / kPanel, WriteGelu{});
      add_part(first, width);
    }
  }

 private:
  // What `width` hidden channels from `first` on add to the result.
  void add_part(std::ptrdiff_t first, std::ptrdiff_t width) {
    alignas(64) float two_blocks[2 * kSums];
    Finisher<WriteAdded> finisher({}, two_blocks);
    const bool is_last = first + width == widen_.outputs;
    const std::ptrdiff_t steps = width / kPanel;
    const int rows_aside = static_cast<int>((kTileRows + steps - 1) / steps);
    for (std::ptrdiff_t panel = 0; panel < narrow_.outputs / kPanel; ++panel) {
      ReadAhead ahead(narrow_.panel(panel + 1, first / kPanel), input_.padded);
      for (std::ptrdiff_t row = 0; row < input_.padded; row += kTileRows) {
        float* const so_far = sums_ + row * sums_stride_ + panel * kPanel;
        if (first) load_sums(so_far, sums_stride_);
        else begin_with(narrow_.bias + panel * kPanel);
        add_products(hidden_ + row * width, width, narrow_.panel(panel, first / kPanel), steps, [&] {
          ahead.some();
          finisher.some(rows_aside);
        });
        if (is_last)
          finisher.take({output_ + row * input_.width + panel * kPanel, input_.width, input_.real - row});
        else
          store_sums(so_far, sums_stride_);
      }
    }
    finisher.some(kTileRows);
  }

  const Layer &widen_, &narrow_;
  const Rows& input_;
  Bfloat16* const output_;
  // Apart from the hidden map's: rows that lie a multiple of 4096 bytes behind one another would wait for each other.
  const std::ptrdiff_t sums_stride_;
  Bfloat16* const hidden_;
  float* const sums_;
};

} // namespace fastvlm
