// FFN that computes a few hidden channels at a time through both layers, so that the hidden map stays in cache.

#pragma once

#include "encoder_linear.hpp"

namespace fastvlm::FASTVLM_LEVEL {

constexpr std::ptrdiff_t kHiddenPart = kPartBytes / 4 / kTileOutputs * kTileOutputs; // channels

// output += narrow(gelu(widen(input))) for `rows` rows.
template <typename Number, typename Product = typename ProductOf<Number>::type>
void add_ffn(const Number* input, Number* output, std::ptrdiff_t rows, const PackedLayer<Product>& widen,
             const PackedLayer<Product>& narrow) {
  using Left = typename Product::Left;
  static thread_local Scratch<Left> input_memory, hidden_memory;
  static thread_local Scratch<SavedTile<Product>> saved_memory;
  const LeftRows<Left> left(input_memory, rows, widen.inputs), hidden(hidden_memory, rows, kHiddenPart);
  left.copy(input, widen.inputs);
  hidden.clear_missing();
  SavedTile<Product>* const saved = saved_memory.at_least(narrow.panels() * parts(rows, kTileHeight));
  const WriteFloats<Number, Added> write{{output, narrow.outputs}, narrow.bias, narrow.outputs, {}};
  for (std::ptrdiff_t first = 0; first < widen.outputs; first += kHiddenPart) {
    const std::ptrdiff_t width = std::min(kHiddenPart, widen.outputs - first);
    const WriteFloats<Left, WithGelu> keep{{hidden.data - first, hidden.stride}, widen.bias, first + rounded_up(width, kTileOutputs), {}};
    apply(left, widen, first / kTileOutputs, parts(width, kTileOutputs), keep);
    const StepRange range{first / Product::kDepth, parts(width, Product::kDepth), first == 0, first + width == widen.outputs};
    multiply(hidden, range, narrow, 0, narrow.panels(), saved, write);
  }
}

} // namespace fastvlm::FASTVLM_LEVEL
