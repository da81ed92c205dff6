// Linear layers in tile registers. The epilogue of one tile is computed while the next products run.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <utility>

#include "blocks.hpp"
#include "../gelu.hpp"
#include "simd.hpp"
#include "../scratch.hpp"
#include "../threads.hpp"

namespace fastvlm::FASTVLM_LEVEL::encoder {

constexpr std::ptrdiff_t kBlockRows = 256; // that a thread takes through a layer at a time: they and the sums stay in L2
constexpr std::ptrdiff_t kPartSize = 384;  // inputs at a time: a panel's weights for them stay in L1

struct Layer {
  const Bfloat16* weight; // (outputs / 32, inputs / 32, 2, 16, 16, 2), see blocks.hpp
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
    store_rows(free_);
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
    const auto there = [to](int first) { return load(to + first); };
    const __m512 low = _mm512_add_ps(_mm512_load_ps(sums), there(0));
    const __m512 high = _mm512_add_ps(_mm512_load_ps(sums + kLanes), there(kLanes));
    _mm512_storeu_si512(to, rounded(low, high));
  }
};

// Asks for memory, so that it is in L2 when its turn comes: a few lines at each of so many steps.
class ReadAhead {
 public:
  ReadAhead() = default;
  ReadAhead(const Bfloat16* from, std::ptrdiff_t numbers, std::ptrdiff_t steps)
      : at_(from), end_(from + numbers), share_((numbers / kBlock + steps - 1) / steps * kBlock) {}
  void some() {
    for (const Bfloat16* const stop = std::min(at_ + share_, end_); at_ < stop; at_ += kBlock)
      _mm_prefetch(at_, _MM_HINT_T1);
  }

 private:
  const Bfloat16 *at_ = nullptr, *end_ = nullptr;
  std::ptrdiff_t share_ = 0;
};

// Rows of numbers one after the other, as many as make whole tiles: rows that are missing are zeros.
struct Rows {
  Bfloat16* data;
  std::ptrdiff_t real, padded, width;

  Rows(const Bfloat16* from, std::ptrdiff_t count, std::ptrdiff_t numbers)
      : data(const_cast<Bfloat16*>(from)), real(count), padded((count + kTileRows - 1) / kTileRows * kTileRows), width(numbers) {
    if (padded == real) return;
    static thread_local Scratch<Bfloat16> memory;
    Bfloat16* copy = memory.at_least(padded * width);
    std::memcpy(copy, from, real * width * sizeof(Bfloat16));
    std::memset(copy + real * width, 0, (padded - real) * width * sizeof(Bfloat16));
    data = copy;
  }
};

// Some inputs of a layer: `left` has those alone.
struct Part {
  Blocks left;
  std::ptrdiff_t first, size;
  bool is_first, is_last;
};

// Some panels of `layer` on a part of its inputs for all `rows`. After the last part `output` gets the results; until
// then `sums` holds them, 512 numbers for each 16 rows of each panel. `later` is memory that is needed afterwards.
template <typename Write>
void multiply(const Part& part, const Rows& rows, const Layer& layer, std::ptrdiff_t first_panel, std::ptrdiff_t panels,
              float* sums, const Blocks& output, const Write& write, ReadAhead later = {}) {
  alignas(64) float two_blocks[2 * kSums];
  Finisher<Write> finisher(write, two_blocks);
  const std::ptrdiff_t steps = part.size / kPanel, first_step = part.first / kPanel, count = rows.padded / kTileRows;
  const int rows_aside = static_cast<int>((kTileRows + steps - 1) / steps);
  for (std::ptrdiff_t panel = 0; panel < panels; ++panel) {
    const Bfloat16* weights = layer.panel(first_panel + panel, first_step);
    ReadAhead next(layer.panel(first_panel + panel + 1, first_step), part.size * kPanel, count * steps);
    for (std::ptrdiff_t down = 0; down < count; ++down) {
      float* const so_far = sums + (panel * count + down) * kSums;
      if (part.is_first) begin_with(layer.bias + (first_panel + panel) * kPanel);
      else load_sums(so_far);
      accumulate(part.left, down, weights, steps, [&] {
        next.some();
        later.some();
        finisher.some(rows_aside);
      });
      if (part.is_last) finisher.take({output.block(down, panel), output.row, rows.real - down * kTileRows});
      else store_sums(so_far);
    }
  }
  finisher.some(kTileRows);
}

// Some panels of `layer` on all of its inputs; as many at a time as keep the sums in L2.
template <typename Write>
void apply(const Rows& rows, const Layer& layer, std::ptrdiff_t first_panel, std::ptrdiff_t panels, const Blocks& output,
           const Write& write) {
  static thread_local Scratch<float> memory;
  const bool is_whole = layer.inputs <= kPartSize;
  const std::ptrdiff_t group = is_whole ? panels : std::min(panels, kPartSize / kPanel);
  float* const sums = is_whole ? nullptr : memory.at_least(rows.padded * group * kPanel);
  for (std::ptrdiff_t panel = 0; panel < panels; panel += group) {
    Blocks some = output;
    some.data = output.block(0, panel);
    for (std::ptrdiff_t first = 0; first < layer.inputs; first += kPartSize) {
      const std::ptrdiff_t size = std::min(kPartSize, layer.inputs - first);
      const Part part{as_rows(rows.data + first, rows.width), first, size, first == 0, first + size == layer.inputs};
      multiply(part, rows, layer, first_panel + panel, std::min(group, panels - panel), sums, some, write);
    }
  }
}

} // namespace fastvlm::FASTVLM_LEVEL::encoder
