// Products of the decoder's attention: keys times queries, and probabilities times values.

#pragma once

#include <algorithm>
#include <cstddef>

#include "register_tile.hpp"
#include "scratch.hpp"
#include "vectors/vectors.hpp"

namespace fastvlm::FASTVLM_LEVEL {

constexpr int kScoreColumns = 16; // queries that go over the same keys together

namespace detail {

constexpr std::ptrdiff_t kWideRows = 48; // rows of the cache that are converted at a time: they stay in L1

// Calls work(first row, rows, float32 numbers) for all rows: as they lie, or converted.
template <typename Work>
void as_floats(const float* rows, std::ptrdiff_t count, std::ptrdiff_t, const Work& work) {
  work(std::ptrdiff_t{0}, count, rows);
}
template <typename Work>
void as_floats(const Bfloat16* rows, std::ptrdiff_t count, std::ptrdiff_t width, const Work& work) {
  static thread_local Scratch<float> memory;
  float* wide = memory.at_least((kWideRows + kTileHeight) * width);
  for (std::ptrdiff_t first = 0; first < count; first += kWideRows) {
    const std::ptrdiff_t some = std::min(kWideRows, count - first);
    for (std::ptrdiff_t i = 0; i < some * width; i += kLanes) store(wide + i, load(rows + first * width + i));
    work(first, some, wide);
  }
}

} // namespace detail

// scores (seen, 16) = keys (seen, width) times `count` queries (count, width).
template <typename Number>
void score_keys(const Number* keys, std::ptrdiff_t seen, std::ptrdiff_t width, const float* queries, std::ptrdiff_t count,
                float* scores) {
  static thread_local Scratch<float> memory;
  float* panel = memory.at_least(width * kScoreColumns);
  for (std::ptrdiff_t i = 0; i < width; ++i)
    for (std::ptrdiff_t column = 0; column < kScoreColumns; ++column)
      panel[i * kScoreColumns + column] = column < count ? queries[column * width + i] : 0.0f;
  detail::as_floats(keys, seen, width, [&](std::ptrdiff_t first, std::ptrdiff_t rows, const float* wide) {
    for (std::ptrdiff_t column = 0; column < count; column += kLanes)
      for (std::ptrdiff_t row = 0; row < rows;) {
        const auto score = [&](auto num_rows) {
          constexpr int kRows = num_rows();
          TileSums<FloatProduct, kRows, 1> tile;
          for (auto& sums : tile) sums[0] = zeros();
          const TileSteps by{width, 1, kScoreColumns};
          add_products<FloatProduct, kRows, 1>(wide + row * width, panel + column, by, width, tile);
          for (int i = 0; i < kRows; ++i) store(scores + (first + row + i) * kScoreColumns + column, tile[i][0]);
          row += kRows;
        };
        if (row + kTileHeight <= rows) score(std::integral_constant<int, kTileHeight>{});
        else score(std::integral_constant<int, 1>{});
      }
  });
}

// results (16, width) = the first `count` columns of weights (seen, 16) times values (seen, width); `ahead` and
// `more_ahead` are as long, and asked for.
template <typename Number>
void mix_values(const float* weights, std::ptrdiff_t count, std::ptrdiff_t seen, const Number* values,
                std::ptrdiff_t width, const Number* ahead, const Number* more_ahead, float* results) {
  const std::ptrdiff_t line = kCacheLine / static_cast<std::ptrdiff_t>(sizeof(Number));
  for (std::ptrdiff_t i = 0; i < seen * width; i += line) {
    __builtin_prefetch(ahead + i, 0, 2);
    __builtin_prefetch(more_ahead + i, 0, 2);
  }
  std::fill(results, results + rounded_up(count, kTileRowUnit) * width, 0.0f);
  detail::as_floats(values, seen, width, [&](std::ptrdiff_t first, std::ptrdiff_t rows, const float* wide) {
    for (std::ptrdiff_t at = 0; at < width; at += kTileOutputs)
      in_tiles(count, [&](std::ptrdiff_t column, auto num_columns) {
        constexpr int kColumns = num_columns();
        TileSums<FloatProduct, kColumns> tile;
        float* to = results + column * width + at;
        for (int i = 0; i < kColumns; ++i)
          for (int j = 0; j < kTileVectors; ++j) tile[i][j] = load(to + i * width + j * kLanes);
        const TileSteps by{1, kScoreColumns, width};
        const float* left = weights + first * kScoreColumns + column;
        add_products<FloatProduct, kColumns, kTileVectors>(left, wide + at, by, rows, tile);
        for (int i = 0; i < kColumns; ++i)
          for (int j = 0; j < kTileVectors; ++j) store(to + i * width + j * kLanes, tile[i][j]);
      });
  });
}

} // namespace fastvlm::FASTVLM_LEVEL
