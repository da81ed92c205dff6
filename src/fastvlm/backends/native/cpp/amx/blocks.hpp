// Products of bfloat16 matrices in tile registers: 16 x 32 sums at a time, which are two tiles.
//
// A left matrix lies row by row. A right one is packed in panels of 32 outputs; in a panel, for each 32 inputs, two
// tiles of 16 outputs: 16 pairs of inputs, each with the 16 outputs' pairs one after the other.
//
// Four of the eight tiles are used. 32 x 32 sums in all eight would load half as often and are no faster where the core
// is ours alone; where its other hardware thread is busy, as on machines that are shared, they take twice as long
// (docs/performance.md).

#pragma once

#include <cstddef>

#include "simd.hpp"
#include "tiles.hpp"

namespace fastvlm::FASTVLM_LEVEL::encoder {

constexpr int kPanel = 32;                        // outputs of a panel, inputs of a step
constexpr int kStepSize = kPanel * kPanel;        // numbers of a right matrix for one step of one panel
constexpr int kSums = kTileRows * kPanel;

// Lets all 16 rows of sums begin with the same 32 numbers.
inline void begin_with(const float* bias) {
  settle_memory();
  _tile_loadd(0, bias, 0);
  _tile_loadd(2, bias + kTileRows, 0);
}

// Sums that wait for more: two tiles, one after the other.
inline void load_sums(const float* from) {
  settle_memory();
  _tile_loadd(0, from, 64);
  _tile_loadd(2, from + kSums / 2, 64);
}

inline void store_sums(float* to) {
  _tile_stored(0, to, 64);
  _tile_stored(2, to + kSums / 2, 64);
  settle_memory();
}

// Sums that are ready: 16 rows of 32.
inline void store_rows(float* to) {
  _tile_stored(0, to, kPanel * 4);
  _tile_stored(2, to + kTileRows, kPanel * 4);
  settle_memory();
}

// Where a matrix of bfloat16 lies, in blocks of 16 x 32: numbers from a row of a block to the next one, and from a block to
// the one below and the one beside it.
struct Blocks {
  Bfloat16* data;
  std::ptrdiff_t row, below, beside;

  Bfloat16* block(std::ptrdiff_t down, std::ptrdiff_t right) const { return data + down * below + right * beside; }
};

inline Blocks as_rows(Bfloat16* data, std::ptrdiff_t width) { return {data, width, kTileRows * width, kPanel}; }

// Each block one after the other, so that it lies in one page and its rows in cache lines side by side.
inline Blocks as_blocks(Bfloat16* data, std::ptrdiff_t width) {
  return {data, kPanel, kTileRows * width, kTileRows * kPanel};
}

// Adds 16 rows of `left` from `down` blocks below its first one on, times one panel, to the sums. `aside()` is called
// after each of `steps` steps: what it computes in other registers runs beside the products.
template <typename Aside>
inline void accumulate(const Blocks& left, std::ptrdiff_t down, const Bfloat16* panel, std::ptrdiff_t steps,
                         const Aside& aside) {
  settle_memory();
  const Bfloat16* numbers = left.block(down, 0);
  for (std::ptrdiff_t step = 0; step < steps; ++step, numbers += left.beside, panel += kStepSize) {
    _tile_loadd(1, numbers, left.row * 2);
    _tile_loadd(3, panel, 64);
    _tile_dpbf16ps(0, 1, 3);
    _tile_loadd(3, panel + kStepSize / 2, 64);
    _tile_dpbf16ps(2, 1, 3);
    aside();
  }
}

} // namespace fastvlm::FASTVLM_LEVEL::encoder
