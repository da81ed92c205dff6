// What Python calls of the decoder's kernels, for CPUs with tile registers. As encoder.cpp: a plain C interface.

#include <cstddef>

#include "decoder_step.hpp"
#include "products_few.hpp"
#include "products_many.hpp"
#include "team.hpp"

using namespace fastvlm;

namespace {

// Few rows of bfloat16 as float32, each thread for itself.
void few_rows(const Product& product, const Bfloat16* rows, std::ptrdiff_t num_rows, const Output& output,
              const Member& member) {
  static thread_local FewRows prepared;
  static thread_local Scratch<float> floats;
  const std::ptrdiff_t width = padded_inputs(product.inputs);
  float* wide = floats.at_least(num_rows * width);
  for (std::ptrdiff_t row = 0; row < num_rows; ++row)
    for (std::ptrdiff_t i = 0; i < width; i += kLanes) {
      const __mmask16 mask = i < product.inputs ? first_floats(product.inputs - i) : __mmask16{0};
      _mm512_storeu_ps(wide + row * width + i,
                       widened(_mm256_maskz_loadu_epi16(mask, rows + row * product.inputs + i)));
    }
  prepared.prepare(product, wide, width, num_rows);
  const WholeTiles tiles;
  FewRowsProduct(product, prepared, output).work(member);
}

} // namespace

#pragma GCC visibility push(default)
extern "C" {

// 1 if this process may use tile registers; the other functions here need it.
int fastvlm_may_use_tiles() { return may_use_tiles() ? 1 : 0; }

// (num_rows, inputs) -> (num_rows, outputs), contiguous bfloat16.
void fastvlm_product(const Product* product, const Bfloat16* rows, Bfloat16* results, std::ptrdiff_t num_rows,
                     int threads) {
  if (num_rows <= kFewRows) {
    as_team(threads, [&](const Member& member) {
      few_rows(*product, rows, num_rows, Output{nullptr, results, product->outputs, false}, member);
    });
    return;
  }
  const std::ptrdiff_t parts = (num_rows + kMaxRows - 1) / kMaxRows;
  const std::ptrdiff_t size = rounded_up((num_rows + parts - 1) / parts, 2 * kTileRows);
  for (std::ptrdiff_t first = 0; first < num_rows; first += size) {
    const Output output{nullptr, results + first * product->outputs, product->outputs, false};
    ManyRows many(*product, rows + first * product->inputs, product->inputs, std::min(size, num_rows - first), output);
    as_team(threads, [&](const Member& member) { many.work(member); });
  }
}

// Logits (count, vocabulary) after one more token of each of `count` slots, at most kFewRows; `embeds` (count, width).
// Their keys and values are put into the cache, at their positions.
void fastvlm_decode(const Model* model, const Bfloat16* embeds, const std::int64_t* slots,
                    const std::int64_t* positions, std::ptrdiff_t count, const Bfloat16* cos, const Bfloat16* sin,
                    Bfloat16* logits, int threads) {
  const Tokens tokens{count, slots, positions, cos, sin};
  const Step step(*model, tokens, embeds, logits);
  as_team(threads, [&](const Member& member) { step.work(member); });
}
}
#pragma GCC visibility pop
