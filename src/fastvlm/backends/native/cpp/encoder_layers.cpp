// C interface of the encoder's linear layers, FFNs and attention in vector registers; amx/encoder.cpp has those in tile
// registers. `dtype` is a Dtype, that of all tensors but biases, which are float32.

#if !defined(__AMX_TILE__)

#include <cstddef>

#include "encoder_attention.hpp"
#include "encoder_ffn.hpp"
#include "encoder_linear.hpp"
#include "interface.hpp"

using namespace fastvlm::FASTVLM_LEVEL;

namespace {

// A layer with a weight as panel_layout says.
struct Layer {
  const void* weight;
  const float* bias;
  std::ptrdiff_t inputs, outputs;

  template <typename Number>
  auto packed() const {
    using Product = typename ProductOf<Number>::type;
    return PackedLayer<Product>{static_cast<const typename Product::Right*>(weight), bias, inputs, outputs};
  }
};

template <typename Number>
void linear_of(const void* input, void* output, std::ptrdiff_t rows, const Layer& layer, int epilogue, int threads) {
  linear(static_cast<const Number*>(input), static_cast<Number*>(output), rows, layer.packed<Number>(), epilogue, threads);
}

template <typename Number>
void ffn_of(const void* input, void* output, std::ptrdiff_t rows, const Layer& widen, const Layer& narrow, int threads) {
  in_row_blocks(rows, threads, [&](std::ptrdiff_t start, std::ptrdiff_t count) {
    const std::ptrdiff_t first = start * widen.inputs;
    add_ffn(static_cast<const Number*>(input) + first, static_cast<Number*>(output) + first, count, widen.packed<Number>(),
            narrow.packed<Number>());
  });
}

template <typename Number>
void attention_of(const void* qkv, void* output, std::ptrdiff_t batch, std::ptrdiff_t tokens, std::ptrdiff_t heads, int threads) {
  in_parallel(static_cast<std::size_t>(batch * heads), threads, [=](std::size_t index) {
    const std::ptrdiff_t first = static_cast<std::ptrdiff_t>(index) / heads * tokens;
    const FlushDenormals tiny;
    const Heads<Number> all{static_cast<const Number*>(qkv) + first * kHeadWidth,
                            static_cast<Number*>(output) + first * heads * kHeadWidth, tokens, heads, batch * tokens};
    Head<Number>(all, static_cast<std::ptrdiff_t>(index) % heads).attend();
  });
}

} // namespace

FASTVLM_INTERFACE_BEGIN

// How weights are packed: (panels, steps, sizes[0], sizes[1], sizes[2], sizes[3]), in which sizes 0 and 2 are the outputs
// of a panel, sizes 1 and 3 the inputs of a step.
void FASTVLM_NAME(panel_layout)(int dtype, int sizes[4]) {
  sizes[0] = sizes[1] = 1;
  sizes[2] = kTileOutputs;
  sizes[3] = dtype == kFloat32 ? FloatProduct::kDepth : ProductOf<Bfloat16>::type::kDepth;
}

// output = input times the layer's weight, plus its bias; `epilogue` is an Epilogue.
void FASTVLM_NAME(linear)(const void* input, void* output, std::ptrdiff_t rows, std::ptrdiff_t inputs, std::ptrdiff_t outputs,
                          const void* weight, const float* bias, int epilogue, int dtype, int threads) {
  const auto compute = dtype == kFloat32 ? linear_of<float> : linear_of<Bfloat16>;
  compute(input, output, rows, {weight, bias, inputs, outputs}, epilogue, threads);
}

// output += narrow(gelu(widen(input))) for `rows` rows of `channels`.
void FASTVLM_NAME(ffn)(const void* input, void* output, std::ptrdiff_t rows, std::ptrdiff_t channels, std::ptrdiff_t hidden,
                       const void* widen, const float* widen_bias, const void* narrow, const float* narrow_bias, int dtype,
                       int threads) {
  const auto compute = dtype == kFloat32 ? ffn_of<float> : ffn_of<Bfloat16>;
  compute(input, output, rows, {widen, widen_bias, channels, hidden}, {narrow, narrow_bias, hidden, channels}, threads);
}

// Attention over all tokens of each of `batch` images; (3, heads, batch * tokens, 32) -> (batch, tokens, heads, 32).
void FASTVLM_NAME(attention)(const void* qkv, void* output, std::ptrdiff_t batch, std::ptrdiff_t tokens, std::ptrdiff_t heads,
                             int dtype, int threads) {
  const auto compute = dtype == kFloat32 ? attention_of<float> : attention_of<Bfloat16>;
  compute(qkv, output, batch, tokens, heads, threads);
}

FASTVLM_INTERFACE_END

#endif
