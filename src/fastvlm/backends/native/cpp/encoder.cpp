// C interface of the encoder's kernels, for CPUs with AVX-512 and bfloat16.
//
// A plain C interface and no headers of torch's, so that any g++ or clang++ compiles it in seconds, and what it makes
// does not depend on the version of torch. Every tensor is bfloat16, contiguous, and holds at least one element.

#include <algorithm>
#include <cstddef>

#include "attention.hpp"
#include "depthwise.hpp"
#include "ffn.hpp"
#include "gelu.hpp"
#include "simd.hpp"
#include "linear.hpp"
#include "threads.hpp"
#include "tiles.hpp"

using namespace fastvlm;
using namespace fastvlm::encoder;

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

#pragma GCC visibility push(default)
extern "C" {

// What Python checks before it calls anything else.
int fastvlm_interface() { return 3; }

// 1 if several threads can be used.
int fastvlm_has_threads() { return openmp_parallel() != nullptr; }

// Exact GELU of `count` numbers, in place.
void fastvlm_gelu(Bfloat16* data, std::size_t count, int threads) {
  constexpr std::size_t kPart = 1 << 16;
  in_parallel((count + kPart - 1) / kPart, threads, [=](std::size_t part) {
    gelu_run(data + part * kPart, std::min(kPart, count - part * kPart));
  });
}

// Attention over all tokens of each of `batch` images; (3, heads, batch * tokens, 32) -> (batch, tokens, heads, 32).
void fastvlm_attention(const Bfloat16* qkv, Bfloat16* output, std::ptrdiff_t batch, std::ptrdiff_t tokens,
                       std::ptrdiff_t heads, int threads) {
  in_parallel(batch * heads, threads, [=](std::size_t index) {
    const std::ptrdiff_t first = static_cast<std::ptrdiff_t>(index) / heads * tokens;
    const AmxTileConfig tiles;
    const FlushDenormals tiny;
    const Heads all{qkv + first * kHeadWidth, output + first * heads * kHeadWidth, tokens, heads, batch * tokens};
    Head(all, static_cast<std::ptrdiff_t>(index) % heads).attend();
  });
}

// output = input times the layer's weight, plus its bias; `epilogue` 1: then GELU; 2: added to what is there instead; 3: put
// there as (outputs / 32, rows, 32).
void fastvlm_linear(const Bfloat16* input, Bfloat16* output, std::ptrdiff_t rows, std::ptrdiff_t inputs,
                    std::ptrdiff_t outputs, const Bfloat16* weight, const float* bias, int epilogue, int threads) {
  const Layer layer{weight, bias, inputs, outputs};
  const std::ptrdiff_t panels = outputs / kPanel;
  in_row_blocks(rows, threads, [&](std::ptrdiff_t start, std::ptrdiff_t count, std::ptrdiff_t) {
    const Rows some(input + start * inputs, count, inputs);
    const Blocks to = as_rows(output + start * outputs, outputs);
    const Blocks apart{output + start * kPanel, kPanel, kTileRows * kPanel, rows * kPanel};
    if (epilogue == 1) apply(some, layer, 0, panels, to, WriteGelu{});
    else if (epilogue == 2) apply(some, layer, 0, panels, to, WriteAdded{});
    else apply(some, layer, 0, panels, epilogue == 3 ? apart : to, WritePlain{});
  });
}

// output += narrow(gelu(widen(input))) for `rows` rows of `channels`; both numbers of channels are multiples of 32.
void fastvlm_ffn(const Bfloat16* input, Bfloat16* output, std::ptrdiff_t rows, std::ptrdiff_t channels,
                 std::ptrdiff_t hidden, const Bfloat16* widen, const float* widen_bias, const Bfloat16* narrow,
                 const float* narrow_bias, int threads) {
  const Layer first{widen, widen_bias, channels, hidden}, second{narrow, narrow_bias, hidden, channels};
  in_row_blocks(rows, threads, [&](std::ptrdiff_t start, std::ptrdiff_t count, std::ptrdiff_t block) {
    const Rows some(input + start * channels, count, channels);
    add_ffn(some, first, second, output + start * channels, input + (start + threads * block) * channels);
  });
}

// (batch, height, width, channels) -> the same shape; `kernel` is 3 or 7, else 1 is returned and nothing done.
int fastvlm_depthwise(const Bfloat16* input, Bfloat16* output, const float* weight, const float* bias,
                      std::ptrdiff_t batch, std::ptrdiff_t height, std::ptrdiff_t width, std::ptrdiff_t channels,
                      int kernel, int threads) {
  const Image image{input, output, weight, bias, height, width, channels};
  if (kernel == 7) {
    depthwise<7>(image, batch, threads);
  } else if (kernel == 3) {
    depthwise<3>(image, batch, threads);
  } else {
    return 1;
  }
  return 0;
}
}
#pragma GCC visibility pop
