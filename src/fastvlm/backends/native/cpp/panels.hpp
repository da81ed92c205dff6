// Weights as they are stored -> panels of register_tile.hpp: kTileOutputs outputs, some inputs.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "linear_weights.hpp"
#include "nibbles.hpp"
#include "register_tile.hpp"
#include "vectors/vectors.hpp"

namespace fastvlm::FASTVLM_LEVEL {

// kLanes words of 32 bits from numbers of a row, for each product's type: one float32, or a pair of int16 or bfloat16.
struct FloatWords {
  using Word = float;
  static constexpr int kDepth = 1;
  static Ints of(const float* at) { return load_ints(at); }
  static Ints of(const Bfloat16* at) { return as_ints(load(at)); }
};

struct Int16Words {
  using Word = std::int16_t;
  static constexpr int kDepth = 2;
  static Ints of(const std::int8_t* at) { return widen_int8(at); }
};

struct Bfloat16Words {
  using Word = Bfloat16;
  static constexpr int kDepth = 2;
  static Ints of(const Bfloat16* at) { return load_ints(at); }
};

// Inputs `start` to `stop` of `count` outputs, rows of `width` numbers from `rows` on; what is missing is zero. The panel
// has whole groups of kLanes * kDepth inputs.
template <typename Words, typename Weight>
void pack_rows(const Weight* rows, std::ptrdiff_t width, std::ptrdiff_t count, std::ptrdiff_t start, std::ptrdiff_t stop,
               typename Words::Word* panel) {
  constexpr std::ptrdiff_t kStep = kLanes * Words::kDepth; // inputs that are transposed at a time
  for (std::ptrdiff_t input = start; input < stop; input += kStep, panel += kStep * kTileOutputs)
    for (int vector = 0; vector < kTileVectors; ++vector) {
      Ints words[kLanes];
      for (int i = 0; i < kLanes; ++i) {
        const std::ptrdiff_t output = vector * kLanes + i;
        const Weight* row = rows + output * width + input;
        if (output >= count) {
          words[i] = no_ints();
        } else if (input + kStep <= width) {
          words[i] = Words::of(row);
        } else {
          Weight rest[kStep] = {};
          std::copy(row, row + std::max<std::ptrdiff_t>(width - input, 0), rest);
          words[i] = Words::of(rest);
        }
      }
      transpose(words);
      for (int i = 0; i < kLanes; ++i)
        store_ints(panel + (i * kTileOutputs + vector * kLanes) * Words::kDepth, words[i]);
    }
}

// 4-bit values minus 8, without scale and zero, in pairs of inputs; `first` is a multiple of kTileOutputs.
inline void pack_nibbles(const Matrix& matrix, std::ptrdiff_t inputs, std::ptrdiff_t first, std::ptrdiff_t start,
                         std::ptrdiff_t stop, std::int16_t* panel) {
  constexpr std::ptrdiff_t kHalf = kOutputs / 2; // outputs whose values lie in the low bits
  const std::ptrdiff_t within = first % kOutputs;
  const std::uint8_t* at = matrix.values + (first - within) * inputs / 2 + within % kHalf + start * kHalf;
  const int shift = within < kHalf ? 0 : 4;
  for (std::ptrdiff_t input = start; input < stop; input += 2, at += 2 * kHalf, panel += 2 * kTileOutputs)
    for (int i = 0; i < kTileVectors; ++i)
      store_ints(panel + 2 * i * kLanes, nibble_pairs(at + i * kLanes, at + kHalf + i * kLanes, shift));
}

} // namespace fastvlm::FASTVLM_LEVEL
