// Rounds rows of activations to unsigned 8 bits, each row with its own scale: x ~ low + scale * value.

#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

#include "vectors/vectors.hpp"

namespace fastvlm::FASTVLM_LEVEL {

constexpr float kLargestUint8 = 255.0f;

// How the numbers of one row are rounded.
struct RowRange {
  float scale, low;
};

// The range of `count` numbers; NaN if one of them is not finite.
template <typename Number>
RowRange range_of_row(const Number* row, std::ptrdiff_t count) {
  const Floats infinity = broadcast(std::numeric_limits<float>::infinity());
  Floats low = infinity, high = zeros() - infinity, not_finite = zeros();
  std::ptrdiff_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Floats x = load(row + i);
    low = smaller(low, x);
    high = larger(high, x);
    not_finite = multiply_add(x, zeros(), not_finite); // 0, or NaN
  }
  float least = -largest(zeros() - low), most = largest(high), problem = sum(not_finite);
  for (; i < count; ++i) {
    alignas(64) float one[kLanes];
    store(one, load(row + i, 1));
    least = one[0] < least ? one[0] : least;
    most = one[0] > most ? one[0] : most;
    problem += one[0] * 0.0f;
  }
  const float width = most - least, tiniest = std::numeric_limits<float>::min() * kLargestUint8;
  return {(width > tiniest ? width : tiniest) / kLargestUint8 + problem, least + problem};
}

// Writes `count` rounded numbers to `values`, and zeros up to `padded` (a multiple of 4).
template <typename Number>
RowRange round_row(const Number* row, std::ptrdiff_t count, std::uint8_t* values, std::ptrdiff_t padded) {
  const RowRange range = range_of_row(row, count);
  const Floats low = broadcast(range.low), steps = broadcast(1.0f / range.scale);
  std::ptrdiff_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store_uint8(values + i, nearest_ints((load(row + i) - low) * steps));
  if (i < count) {
    std::uint8_t some[kLanes];
    store_uint8(some, nearest_ints((load(row + i, count - i) - low) * steps));
    std::memcpy(values + i, some, static_cast<std::size_t>(count - i));
  }
  if (padded > count) std::memset(values + count, 0, static_cast<std::size_t>(padded - count));
  return range;
}

} // namespace fastvlm::FASTVLM_LEVEL
