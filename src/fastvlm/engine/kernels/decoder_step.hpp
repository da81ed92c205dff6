// One more token of each of several slots through a whole decoder, in one go: between two products the threads meet,
// and nothing else happens. Sums, the residual stream among them, are float32.

#pragma once

#include "decoder_attention.hpp"
#include "products_few.hpp"
#include "team.hpp"

namespace fastvlm {

// `NativeLayer` in native_decoder.py.
struct Layer {
  const Bfloat16 *attention_norm, *mlp_norm; // (width,)
  const Product *qkv, *output, *gate_up, *down;
  Bfloat16* cache; // (slots, 2 kv_heads, context, head width): keys, then values
};

// `NativeModel` in native_decoder.py.
struct Model {
  const Layer* layers;
  const Bfloat16* norm; // (width,)
  const Product* head;
  std::ptrdiff_t num_layers, width;
  Heads heads;
  double epsilon;
};

class Step {
 public:
  // `embeds` (tokens, width), `logits` (tokens, vocabulary).
  Step(const Model& model, const Tokens& tokens, const Bfloat16* embeds, Bfloat16* logits)
      : model_(model), tokens_(tokens), logits_(logits), stride_(padded_inputs(model.width)) {
    static thread_local Scratch<float> memory;
    const Product& gate_up = *model.layers->gate_up;
    const std::ptrdiff_t qkv = model.layers->qkv->outputs, mixed = padded_inputs(model.heads.heads * model.heads.width);
    const std::ptrdiff_t count = tokens.count;
    hidden_ = memory.at_least(count * (stride_ + qkv + mixed + gate_up.outputs));
    qkv_ = hidden_ + count * stride_;
    mixed_ = qkv_ + count * qkv;
    gate_up_ = mixed_ + count * mixed;
    std::fill(hidden_, hidden_ + count * stride_, 0.0f);
    std::fill(mixed_, mixed_ + count * mixed, 0.0f);
    for (std::ptrdiff_t row = 0; row < count; ++row)
      for (std::ptrdiff_t i = 0; i < model.width; i += kLanes) {
        const __mmask16 mask = first_floats(model.width - i);
        _mm512_mask_storeu_ps(hidden_ + row * stride_ + i, mask,
                              widened(_mm256_maskz_loadu_epi16(mask, embeds + row * model.width + i)));
      }
  }

  void work(const Member& member) const {
    static thread_local FewRows rows;
    static thread_local Scratch<float> inputs;
    const Heads& heads = model_.heads;
    const std::ptrdiff_t mixed = padded_inputs(heads.heads * heads.width), count = tokens_.count;
    const WholeTiles tiles;
    for (const Layer* layer = model_.layers; layer < model_.layers + model_.num_layers; ++layer) {
      float* normed = inputs.at_least(count * stride_);
      norm(layer->attention_norm, normed);
      multiply(*layer->qkv, normed, stride_, rows, Output{qkv_, nullptr, layer->qkv->outputs, false}, member);
      Attention(heads, tokens_, layer->cache, qkv_, mixed_, mixed).work(member);
      FewRowsProduct::begin(*layer->output, member);
      member.meet();
      multiply(*layer->output, mixed_, mixed, rows, Output{hidden_, nullptr, stride_, true}, member);
      norm(layer->mlp_norm, normed);
      multiply(*layer->gate_up, normed, stride_, rows, Output{gate_up_, nullptr, layer->gate_up->outputs, false}, member);
      const std::ptrdiff_t inner = padded_inputs(layer->down->inputs);
      float* gated = inputs.at_least(count * inner);
      gate(layer->down->inputs, gated, inner);
      multiply(*layer->down, gated, inner, rows, Output{hidden_, nullptr, stride_, true}, member);
    }
    float* normed = inputs.at_least(count * stride_);
    norm(model_.norm, normed);
    multiply(*model_.head, normed, stride_, rows, Output{nullptr, logits_, model_.head->outputs, false}, member);
  }

 private:
  void multiply(const Product& product, const float* inputs, std::ptrdiff_t stride, FewRows& rows,
                const Output& output, const Member& member) const {
    rows.prepare(product, inputs, stride, tokens_.count);
    FewRowsProduct(product, rows, output).work(member);
    member.meet();
  }

  // RMS norm of every row, by each thread for itself.
  void norm(const Bfloat16* weight, float* normed) const {
    for (std::ptrdiff_t row = 0; row < tokens_.count; ++row, normed += stride_) {
      const float* values = hidden_ + row * stride_;
      __m512 squares = _mm512_setzero_ps();
      for (std::ptrdiff_t i = 0; i < stride_; i += kLanes) {
        const __m512 value = _mm512_loadu_ps(values + i);
        squares = _mm512_fmadd_ps(value, value, squares);
      }
      const double mean = _mm512_reduce_add_ps(squares) / static_cast<double>(model_.width);
      const __m512 factor = _mm512_set1_ps(static_cast<float>(1 / std::sqrt(mean + model_.epsilon)));
      for (std::ptrdiff_t i = 0; i < stride_; i += kLanes) {
        const __mmask16 mask = i < model_.width ? first_floats(model_.width - i) : __mmask16{0};
        const __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, values + i), factor);
        _mm512_storeu_ps(normed + i, _mm512_mul_ps(scaled, widened(_mm256_maskz_loadu_epi16(mask, weight + i))));
      }
    }
  }

  // silu(gate) * up of every row.
  void gate(std::ptrdiff_t inner, float* gated, std::ptrdiff_t stride) const {
    for (std::ptrdiff_t row = 0; row < tokens_.count; ++row, gated += stride) {
      const float* gates = gate_up_ + row * 2 * inner;
      for (std::ptrdiff_t i = 0; i < stride; i += kLanes) {
        const __mmask16 mask = i < inner ? first_floats(inner - i) : __mmask16{0};
        const __m512 value = _mm512_maskz_loadu_ps(mask, gates + i), up = _mm512_maskz_loadu_ps(mask, gates + inner + i);
        const __m512 below = _mm512_add_ps(_mm512_set1_ps(1), exponential(_mm512_sub_ps(_mm512_setzero_ps(), value)));
        _mm512_storeu_ps(gated + i, _mm512_div_ps(_mm512_mul_ps(value, up), below));
      }
    }
  }

  const Model& model_;
  const Tokens& tokens_;
  Bfloat16* logits_;
  const std::ptrdiff_t stride_;
  float *hidden_, *qkv_, *mixed_, *gate_up_;
};

} // namespace fastvlm
