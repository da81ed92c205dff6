// An FFN whose wide hidden map never leaves the cache: some hidden channels at a time, from first to last layer.

#pragma once

#include <algorithm>
#include <cstddef>

#include "linear.hpp"
#include "scratch.hpp"

namespace fastvlm {

// output += narrow(gelu(widen(rows))), `output` being as wide as the rows.
inline void add_ffn(const Rows& rows, const Layer& widen, const Layer& narrow, Bfloat16* output) {
  Bfloat16* const hidden = scratch<Bfloat16, 0>(rows.padded * kPartSize);
  const Sums sums = sums_for<5>(rows, narrow.outputs);
  for (std::ptrdiff_t first = 0; first < widen.outputs; first += kPartSize) {
    const std::ptrdiff_t width = std::min(kPartSize, widen.outputs - first);
    apply(rows, widen, first / kPanel, width / kPanel, hidden, width, WriteGelu{});
    const Part part{hidden, width, first, width, first == 0, first + width == widen.outputs};
    multiply(part, rows, narrow, 0, narrow.outputs / kPanel, sums, output, rows.width, WriteAdded{});
  }
}

} // namespace fastvlm
