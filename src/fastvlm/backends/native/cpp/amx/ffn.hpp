// FFN that computes a few hidden channels at a time through both layers, so that the hidden map stays in cache.

#pragma once

#include <algorithm>
#include <cstddef>

#include "linear.hpp"
#include "../scratch.hpp"

namespace fastvlm::FASTVLM_LEVEL::encoder {

// output += narrow(gelu(widen(rows))), `output` being as wide as the rows. `next` are rows that this thread may have to
// take through the same layers afterwards, as many.
inline void add_ffn(const Rows& rows, const Layer& widen, const Layer& narrow, Bfloat16* output, const Bfloat16* next) {
  static thread_local Scratch<Bfloat16> hidden_memory;
  static thread_local Scratch<float> sums_memory;
  Bfloat16* const hidden = hidden_memory.at_least(rows.padded * kPartSize);
  float* const sums = sums_memory.at_least(rows.padded * narrow.outputs);
  for (std::ptrdiff_t first = 0; first < widen.outputs; first += kPartSize) {
    const std::ptrdiff_t width = std::min(kPartSize, widen.outputs - first), panels = narrow.outputs / kPanel;
    const Blocks map = as_blocks(hidden, width);
    apply(rows, widen, first / kPanel, width / kPanel, map, WriteGelu{});
    const Part part{map, first, width, first == 0, first + width == widen.outputs};
    const std::ptrdiff_t numbers = rows.padded * rows.width, steps = rows.padded / kTileRows * panels * (width / kPanel);
    ReadAhead later;
    if (part.is_last) later = ReadAhead(next, numbers, steps);
    else if (part.is_first) later = ReadAhead(output, numbers, steps);
    multiply(part, rows, narrow, 0, panels, sums, as_rows(output, rows.width), WriteAdded{}, later);
  }
}

} // namespace fastvlm::FASTVLM_LEVEL::encoder
