// A tile of sums in registers: kTileRows rows times kTileVectors vectors of outputs (outer products).
//
// The left matrix lies row by row. The right one is packed in panels of kTileOutputs outputs: for each step (kDepth
// inputs) the numbers of all outputs of the panel, each output's inputs one after the other.

#pragma once

#include <algorithm>
#include <cstddef>

#include "products.hpp"

namespace fastvlm::FASTVLM_LEVEL {

constexpr int kTileVectors = 2;
constexpr int kTileHeight = kRegisters == 16 ? 6 : 12; // rows; with the vectors and one left number they fill the registers
constexpr int kTileOutputs = kTileVectors * kLanes;

template <typename Product, int kRows>
using TileSums = typename Product::Sum[kRows][kTileVectors];

struct NothingAhead {
  void operator()() const {}
};

// Adds kRows rows of `left`, `stride` numbers apart, times `steps` steps of `panel` to `sums`; ahead() is called for
// each cache line of a row.
template <typename Product, int kRows, typename Ahead = NothingAhead>
inline void add_products(const typename Product::Left* left, std::ptrdiff_t stride, const typename Product::Right* panel,
                         std::ptrdiff_t steps, TileSums<Product, kRows>& sums, const Ahead& ahead = {}) {
  typename Product::Sum in_registers[kRows][kTileVectors];
  UNROLLED
  for (int row = 0; row < kRows; ++row)
    for (int i = 0; i < kTileVectors; ++i) in_registers[row][i] = sums[row][i];
  constexpr std::ptrdiff_t kLine = 64 / (sizeof(typename Product::Left) * Product::kDepth); // steps
  for (std::ptrdiff_t stop = 0; stop < steps;) {
    std::ptrdiff_t step = stop;
    stop = std::min(stop + kLine, steps);
    ahead();
    for (; step < stop; ++step) {
      const auto first = Product::right(panel), second = Product::right(panel + kLanes * Product::kDepth);
      UNROLLED
      for (int row = 0; row < kRows; ++row) {
        const auto number = Product::left(left + row * stride);
        in_registers[row][0] = Product::add(in_registers[row][0], number, first);
        in_registers[row][1] = Product::add(in_registers[row][1], number, second);
      }
      left += Product::kDepth;
      panel += kTileOutputs * Product::kDepth;
    }
  }
  UNROLLED
  for (int row = 0; row < kRows; ++row)
    for (int i = 0; i < kTileVectors; ++i) sums[row][i] = in_registers[row][i];
}

} // namespace fastvlm::FASTVLM_LEVEL
