// C interface of the encoder's layers in tile registers; ../encoder_layers.cpp has it for other levels. Tensors are
// bfloat16, the only `dtype`.

#if defined(__AMX_TILE__)

#include <algorithm>
#include <cstddef>

#include "../interface.hpp"
#include "../threads.hpp"
#include "attention.hpp"
#include "ffn.hpp"
#include "linear.hpp"
#include "tiles.hpp"

using namespace fastvlm::FASTVLM_LEVEL;
using namespace fastvlm::FASTVLM_LEVEL::encoder;

namespace {

// Calls work(first row, rows, rows of a whole block) for all rows, whole blocks of them at a time, and at least one for each thread.
template <typename Work>
void in_row_blocks(std::ptrdiff_t rows, int threads, const Work& work) {
  const std::ptrdiff_t share = parts(parts(rows, threads), kTileRows) * kTileRows, block = std::min(kBlockRows, share);
  in_parallel(parts(rows, block), threads, [&](std::size_t index) {
    const std::ptrdiff_t start = static_cast<std::ptrdiff_t>(index) * block;
    const AmxTileConfig tiles;
    work(start, std::min(block, rows - start), block);
  });
}

} // namespace

FASTVLM_INTERFACE_BEGIN

// As ../encoder_layers.cpp says.
void FASTVLM_NAME(panel_layout)(int, int sizes[4]) {
  sizes[0] = 2;
  sizes[1] = sizes[2] = kTileRows;
  sizes[3] = 2;
}

// Attention over all tokens of each of `batch` images; (3, heads, batch * tokens, 32) -> (batch, tokens, heads, 32).
void FASTVLM_NAME(attention)(const Bfloat16* qkv, Bfloat16* output, std::ptrdiff_t batch, std::ptrdiff_t tokens,
                       std::ptrdiff_t heads, int, int threads) {
  in_parallel(batch * heads, threads, [=](std::size_t index) {
    const std::ptrdiff_t first = static_cast<std::ptrdiff_t>(index) / heads * tokens;
    const AmxTileConfig tiles;
    const FlushDenormals tiny;
    const Heads all{qkv + first * kHeadWidth, output + first * heads * kHeadWidth, tokens, heads, batch * tokens};
    Head(all, static_cast<std::ptrdiff_t>(index) % heads).attend();
  });
}

// output = input times the layer's weight, plus its bias; `epilogue` is an Epilogue.
void FASTVLM_NAME(linear)(const Bfloat16* input, Bfloat16* output, std::ptrdiff_t rows, std::ptrdiff_t inputs,
                    std::ptrdiff_t outputs, const Bfloat16* weight, const float* bias, int epilogue, int, int threads) {
  const Layer layer{weight, bias, inputs, outputs};
  const std::ptrdiff_t panels = outputs / kPanel;
  in_row_blocks(rows, threads, [&](std::ptrdiff_t start, std::ptrdiff_t count, std::ptrdiff_t) {
    const Rows some(input + start * inputs, count, inputs);
    const Blocks to = as_rows(output + start * outputs, outputs);
    const Blocks apart{output + start * kPanel, kPanel, kTileRows * kPanel, rows * kPanel};
    if (epilogue == kGelu) apply(some, layer, 0, panels, to, WriteGelu{});
    else if (epilogue == kAdded) apply(some, layer, 0, panels, to, WriteAdded{});
    else apply(some, layer, 0, panels, epilogue == kHeads ? apart : to, WritePlain{});
  });
}

// output += narrow(gelu(widen(input))) for `rows` rows of `channels`; both numbers of channels are multiples of 32.
void FASTVLM_NAME(ffn)(const Bfloat16* input, Bfloat16* output, std::ptrdiff_t rows, std::ptrdiff_t channels,
                 std::ptrdiff_t hidden, const Bfloat16* widen, const float* widen_bias, const Bfloat16* narrow,
                 const float* narrow_bias, int, int threads) {
  const Layer first{widen, widen_bias, channels, hidden}, second{narrow, narrow_bias, hidden, channels};
  in_row_blocks(rows, threads, [&](std::ptrdiff_t start, std::ptrdiff_t count, std::ptrdiff_t block) {
    const Rows some(input + start * channels, count, channels);
    add_ffn(some, first, second, output + start * channels, input + (start + threads * block) * channels);
  });
}

FASTVLM_INTERFACE_END

#endif
