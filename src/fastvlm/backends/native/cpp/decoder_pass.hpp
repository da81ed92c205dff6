// Runs new tokens through all layers of a decoder in one call, with a thread barrier between two linear layers.
// Sums and the residual stream are float32.

#pragma once

#include "decoder_attention.hpp"
#include "exponential.hpp"
#include "amx/gemm.hpp"
#include "amx/gemm_small_m.hpp"
#include "team.hpp"

namespace fastvlm::FASTVLM_LEVEL {

// `NativeLayer` in native_decoder.py.
struct Layer {
  const Bfloat16 *attention_norm, *mlp_norm; // (width,)
  const LinearWeights *qkv, *output, *gate_up, *down;
  Bfloat16* cache; // (slots, 2 kv_heads, context, head width): keys, then values
};

// `NativeModel` in native_decoder.py.
struct Model {
  const Layer* layers;
  const Bfloat16* norm; // (width,)
  const LinearWeights* head;
  std::ptrdiff_t num_layers, width;
  Heads heads;
  double epsilon;
};

// Rows that take part in a linear.
struct Span {
  std::ptrdiff_t first, count;
  bool are_many() const { return count > kFewRows; }
};

class Pass {
  // Fills rows with the RMS norm of the residual stream.
  auto norm(const Bfloat16* weight) const {
    return [this, weight](std::ptrdiff_t row, float* normed) {
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
    };
  }

 public:
  // `embeds` (tokens, width), at most kMaxRows.
  Pass(const Model& model, const Tokens& tokens, const Bfloat16* embeds)
      : model_(model),
        tokens_(tokens),
        all_{0, tokens.count},
        stride_(padded_inputs(model.width)),
        mixed_stride_(padded_inputs(model.heads.heads * model.heads.width)),
        inner_(model.layers->down->inputs) {
    static thread_local Scratch<float> memory;
    static thread_local Scratch<std::uint8_t> columns;
    const std::ptrdiff_t count = tokens.count;
    hidden_ = memory.at_least(count * (stride_ + mixed_stride_ + model.heads.row() + 2 * inner_));
    mixed_ = hidden_ + count * stride_;
    qkv_ = mixed_ + count * mixed_stride_;
    gates_ = qkv_ + count * model.heads.row();
    columns_ = &columns;
    columns.at_least(rounded_up(count, kTileRows) * 2 * std::max({stride_, mixed_stride_, padded_inputs(inner_)}));
    std::fill(hidden_, qkv_, 0.0f);
    for (std::ptrdiff_t row = 0; row < count; ++row)
      for (std::ptrdiff_t i = 0; i < model.width; i += kLanes) {
        const __mmask16 mask = first_floats(model.width - i);
        _mm512_mask_storeu_ps(hidden_ + row * stride_ + i, mask,
                              widened(_mm256_maskz_loadu_epi16(mask, embeds + row * model.width + i)));
      }
  }

  // All layers; of a prompt the last one's results are there for the last token alone.
  void layers(const TeamMember& member) const {
    for (const Layer* layer = model_.layers; layer < model_.layers + model_.num_layers; ++layer) {
      const bool is_last = layer + 1 == model_.layers + model_.num_layers;
      const Span rest = is_last && tokens_.are_a_prompt ? Span{all_.count - 1, 1} : all_;
      multiply(*layer->qkv, all_, norm(layer->attention_norm), to(qkv_, model_.heads.row()), member, layer->output);
      Attention(model_.heads, tokens_, layer->cache, qkv_, mixed_, mixed_stride_).work(member, rest.first);
      member.barrier();
      const auto mixed = [this](std::ptrdiff_t row, float* numbers) {
        std::copy_n(mixed_ + row * mixed_stride_, mixed_stride_, numbers);
      };
      multiply(*layer->output, rest, mixed, add_to(hidden_), member, layer->gate_up);
      mlp(*layer, rest, member, is_last ? model_.head : layer[1].qkv);
    }
  }

  // Logits (tokens, vocabulary).
  void head(const TeamMember& member, Bfloat16* logits) const {
    const Output output{nullptr, logits, model_.head->outputs, false};
    multiply(*model_.head, all_, norm(model_.norm), output, member, nullptr);
  }

  // What the layers make of the last token (width,).
  void last(Bfloat16* hidden) const {
    const Output output{nullptr, hidden, model_.width, false};
    for (std::ptrdiff_t i = 0; i < model_.width; i += kLanes)
      output.put(0, i, load(hidden_ + (all_.count - 1) * stride_ + i), model_.width - i);
  }

 private:
  static Output to(float* sums, std::ptrdiff_t stride) { return {sums, nullptr, stride, false}; }
  Output add_to(float* sums) const { return {sums, nullptr, stride_, true}; }

  void mlp(const Layer& layer, const Span& span, const TeamMember& member, const LinearWeights* next) const {
    const auto normed = norm(layer.mlp_norm);
    if (span.are_many()) { // gates and what they let through meet in registers
      auto* gated = reinterpret_cast<Bfloat16*>(gates_);
      multiply(*layer.gate_up, span, normed, Output{nullptr, gated, inner_, false}, member, layer.down, true);
      const auto wide = [this, gated](std::ptrdiff_t row, float* numbers) { widen(gated + row * inner_, numbers); };
      multiply(*layer.down, span, wide, add_to(hidden_), member, next);
    } else {
      multiply(*layer.gate_up, span, normed, to(gates_, 2 * inner_), member, layer.down);
      const auto gated = [this](std::ptrdiff_t row, float* numbers) { gate(gates_ + row * 2 * inner_, numbers); };
      multiply(*layer.down, span, gated, add_to(hidden_), member, next);
    }
  }

  // fill(row, numbers) gives a row of inputs, with zeros up to padded_inputs(inputs); `next` is what comes after this.
  template <typename Fill>
  void multiply(const LinearWeights& linear, const Span& span, const Fill& fill, Output output, const TeamMember& member,
                const LinearWeights* next, bool is_gated = false) const {
    if (output.sums) output.sums += span.first * output.stride;
    static thread_local Scratch<float> numbers;
    const std::ptrdiff_t width = padded_inputs(linear.inputs);
    if (span.are_many()) {
      const Columns columns(*columns_, span.count, linear.inputs);
      float* wide = numbers.at_least(width);
      columns.pack(member, [&](std::ptrdiff_t row, Bfloat16* narrow) {
        fill(span.first + row, wide);
        for (std::ptrdiff_t i = 0; i < width; i += kLanes)
          _mm256_storeu_si256(reinterpret_cast<__m256i*>(narrow + i), narrowed(_mm512_loadu_ps(wide + i)));
      });
      member.barrier();
      Gemm(linear, columns, output, is_gated).work(member);
    } else {
      static thread_local FewRows rows;
      float* wide = numbers.at_least(span.count * width);
      for (std::ptrdiff_t row = 0; row < span.count; ++row) fill(span.first + row, wide + row * width);
      rows.prepare(linear, wide, width, span.count);
      SmallMGemm(linear, rows, output).work(member);
      if (next) SmallMGemm::begin(*next, member);
    }
    member.barrier();
  }

  // silu(gate) * up of one row.
  void gate(const float* gates, float* gated) const {
    for (std::ptrdiff_t i = 0; i < padded_inputs(inner_); i += kLanes) {
      const __mmask16 mask = i < inner_ ? first_floats(inner_ - i) : __mmask16{0};
      const __m512 up = _mm512_maskz_loadu_ps(mask, gates + inner_ + i);
      _mm512_storeu_ps(gated + i, _mm512_mul_ps(silu(_mm512_maskz_loadu_ps(mask, gates + i)), up));
    }
  }

  void widen(const Bfloat16* narrow, float* wide) const {
    for (std::ptrdiff_t i = 0; i < padded_inputs(inner_); i += kLanes) {
      const __mmask16 mask = i < inner_ ? first_floats(inner_ - i) : __mmask16{0};
      _mm512_storeu_ps(wide + i, widened(_mm256_maskz_loadu_epi16(mask, narrow + i)));
    }
  }

  const Model& model_;
  const Tokens& tokens_;
  const Span all_;
  const std::ptrdiff_t stride_, mixed_stride_, inner_;
  float *hidden_, *mixed_, *qkv_, *gates_;
  Scratch<std::uint8_t>* columns_;
};

} // namespace fastvlm::FASTVLM_LEVEL
