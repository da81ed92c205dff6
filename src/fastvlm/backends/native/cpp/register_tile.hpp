// A tile of sums in registers: kTileRows rows times kTileVectors vectors of outputs (outer products).
//
// The left matrix lies row by row. The right one is packed in panels of kTileOutputs outputs: for each step (kDepth
// inputs) the numbers of all outputs of the panel, each output's inputs one after the other.

#pragma once

#include <algorithm>
#include <cstddef>
#include <type_traits>

#include "products.hpp"

namespace fastvlm::FASTVLM_LEVEL {

constexpr int kTileVectors = 2;
constexpr int kTileHeight = kRegisters == 16 ? 6 : 12; // rows; with the vectors and one left number they fill the registers
constexpr int kTileOutputs = kTileVectors * kLanes;

template <typename Product, int kRows, int kVectors = kTileVectors>
using TileSums = typename Product::Sum[kRows][kVectors];

struct NothingAhead {
  void operator()() const {}
};

// Where a tile's operands lie: numbers from one row of the left matrix to the next, and for one step in either matrix.
struct TileSteps {
  std::ptrdiff_t row, left, right;
};

// Adds kRows rows of `left` times `steps` steps of `right` to `sums`; ahead() is called for each cache line of a row.
// Not inline: among a caller's variables g++ 12 keeps sums in memory.
template <typename Product, int kRows, int kVectors, typename Ahead = NothingAhead>
[[gnu::noinline]] void add_products(const typename Product::Left* left, const typename Product::Right* right, const TileSteps& by,
                         std::ptrdiff_t steps, TileSums<Product, kRows, kVectors>& sums, const Ahead& ahead = {}) {
  typename Product::Sum in_registers[kRows][kVectors];
  UNROLLED
  for (int row = 0; row < kRows; ++row)
    for (int i = 0; i < kVectors; ++i) in_registers[row][i] = sums[row][i];
  constexpr bool kHasAhead = !std::is_same_v<Ahead, NothingAhead>;
  const std::ptrdiff_t line = kHasAhead ? 64 / (sizeof(typename Product::Left) * Product::kDepth) : steps; // steps
  for (std::ptrdiff_t stop = 0; stop < steps;) {
    std::ptrdiff_t step = stop;
    stop = std::min(stop + line, steps);
    ahead();
    for (; step < stop; ++step, left += by.left, right += by.right) {
      decltype(Product::right(right)) vectors[kVectors];
      UNROLLED
      for (int i = 0; i < kVectors; ++i) vectors[i] = Product::right(right + i * kLanes * Product::kDepth);
      UNROLLED
      for (int row = 0; row < kRows; ++row) {
        const auto number = Product::left(left + row * by.row);
        UNROLLED
        for (int i = 0; i < kVectors; ++i) in_registers[row][i] = Product::add(in_registers[row][i], number, vectors[i]);
      }
    }
  }
  UNROLLED
  for (int row = 0; row < kRows; ++row)
    for (int i = 0; i < kVectors; ++i) sums[row][i] = in_registers[row][i];
}

// The same with a panel, for rows that are `stride` numbers apart.
template <typename Product, int kRows, typename Ahead = NothingAhead>
inline void add_products(const typename Product::Left* left, std::ptrdiff_t stride, const typename Product::Right* panel,
                         std::ptrdiff_t steps, TileSums<Product, kRows>& sums, const Ahead& ahead = {}) {
  const TileSteps by{stride, Product::kDepth, kTileOutputs * Product::kDepth};
  add_products<Product, kRows, kTileVectors>(left, panel, by, steps, sums, ahead);
}

// Rows of operands and sums are padded to a multiple of this, so that only two heights of tiles are compiled.
constexpr int kTileRowUnit = kTileHeight / 2;

// Calls work(first row, rows of a tile as a constant) for all of `rows`.
template <typename Work>
inline void in_tiles(std::ptrdiff_t rows, const Work& work) {
  std::ptrdiff_t row = 0;
  for (; row + kTileRowUnit < rows; row += kTileHeight) work(row, std::integral_constant<int, kTileHeight>{});
  if (row < rows) work(row, std::integral_constant<int, kTileRowUnit>{});
}

// Calls work(std::integral_constant<int, n>) for `count` of 1 to kMost.
template <int kMost, typename Work>
inline void with_count(int count, const Work& work) {
  if (count == kMost) return work(std::integral_constant<int, kMost>{});
  if constexpr (kMost > 1) with_count<kMost - 1>(count, work);
}

} // namespace fastvlm::FASTVLM_LEVEL
