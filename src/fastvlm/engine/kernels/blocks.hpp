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

#include "lanes.hpp"
#include "tiles.hpp"

namespace fastvlm::encoder {

constexpr int kPanel = 32;                        // outputs of a panel, inputs of a step
constexpr int kStepSize = kPanel * kPanel;        // numbers of a right matrix for one step of one panel
constexpr int kSums = kTileRows * kPanel;

// Lets all 16 rows of sums begin with the same 32 numbers.
inline void begin_with(const float* bias) {
  settle_memory();
  _tile_loadd(0, bias, 0);
  _tile_loadd(2, bias + kTileRows, 0);
}

// `stride` in numbers, from one row to the next.
inline void load_sums(const float* from, std::ptrdiff_t stride) {
  settle_memory();
  _tile_loadd(0, from, stride * 4);
  _tile_loadd(2, from + kTileRows, stride * 4);
}

inline void store_sums(float* to, std::ptrdiff_t stride) {
  _tile_stored(0, to, stride * 4);
  _tile_stored(2, to + kTileRows, stride * 4);
  settle_memory();
}

// Adds 16 rows of `left`, `stride` numbers apart, times one panel to the sums. `aside()` is called after each of
// `steps` steps: what it computes in other registers runs beside the products.
template <typename Aside>
inline void add_products(const Bfloat16* left, std::ptrdiff_t stride, const Bfloat16* panel, std::ptrdiff_t steps,
                         const Aside& aside) {
  settle_memory();
  for (std::ptrdiff_t step = 0; step < steps; ++step) {
    _tile_loadd(1, left + step * kPanel, stride * 2);
    _tile_loadd(3, panel + step * kStepSize, 64);
    _tile_dpbf16ps(0, 1, 3);
    _tile_loadd(3, panel + step * kStepSize + kStepSize / 2, 64);
    _tile_dpbf16ps(2, 1, 3);
    aside();
  }
}

} // namespace fastvlm::encoder
