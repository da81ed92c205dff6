// Runs new tokens through all layers of a decoder in one call, with a thread barrier between two linear layers.
// Sums and the residual stream are float32.

#pragma once

#include <algorithm>
#include <cmath>

#include "decoder_attention.hpp"
#include "exponential.hpp"
#include "level_gemm.hpp"
#include "team.hpp"

namespace fastvlm::FASTVLM_LEVEL {

// `NativeLayer` in native/decoder.py.
struct Layer {
  const void *attention_norm, *mlp_norm; // (width,)
  const LinearWeights *qkv, *output, *gate_up, *down;
  void* cache; // (slots, 2 kv_heads, context, head width): keys, then values
};

// `NativeModel` in native/decoder.py.
struct Model {
  const Layer* layers;
  const void* norm; // (width,)
  const LinearWeights* head;
  std::ptrdiff_t num_layers, width;
  Heads heads;
  double epsilon;
};

// What is made of the last layer's results.
enum Result : int { kLogits = 0, kLastHidden = 1 };

// Rows that take part in a linear.
struct Span {
  std::ptrdiff_t first, count;
  bool are_many() const { return count > kFewRows; }
};

// Tensors of the interface, the cache included, are `Number`.
template <typename Number>
class Pass {
  // Fills rows with the RMS norm of the residual stream.
  auto norm(const void* of_numbers) const {
    const auto* weight = static_cast<const Number*>(of_numbers);
    return [this, weight](std::ptrdiff_t row, float* normed) {
      const float* values = hidden_ + row * stride_;
      Floats squares = zeros();
      for (std::ptrdiff_t i = 0; i < stride_; i += kLanes) squares = multiply_add(load(values + i), load(values + i), squares);
      const double mean = sum(squares) / static_cast<double>(model_.width);
      const Floats factor = broadcast(static_cast<float>(1 / std::sqrt(mean + model_.epsilon)));
      for (std::ptrdiff_t i = 0; i < stride_; i += kLanes)
        store(normed + i, load(values + i) * factor * load(weight + i, model_.width - i));
    };
  }

 public:
  // `embeds` (tokens, width), at most kMaxRows.
  Pass(const Model& model, const Tokens<Number>& tokens, const Number* embeds, Result result)
      : model_(model),
        tokens_(tokens),
        result_(result),
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
    columns.at_least(Columns::num_bytes(count, std::max({stride_, mixed_stride_, padded_inputs(inner_)})));
    std::fill(hidden_, qkv_, 0.0f);
    for (std::ptrdiff_t row = 0; row < count; ++row)
      for (std::ptrdiff_t i = 0; i < model.width; i += kLanes)
        store(hidden_ + row * stride_ + i, load(embeds + row * model.width + i, model.width - i), model.width - i);
  }

  // All layers; if only the last hidden state is wanted, the last layer's results are there for the last token alone.
  void layers(const TeamMember& member) const {
    for (const Layer* layer = model_.layers; layer < model_.layers + model_.num_layers; ++layer) {
      const bool is_last = layer + 1 == model_.layers + model_.num_layers;
      const Span rest = is_last && result_ == kLastHidden ? Span{all_.count - 1, 1} : all_;
      multiply(*layer->qkv, all_, norm(layer->attention_norm), Output(qkv_, model_.heads.row()), member, layer->output);
      auto* cache = static_cast<Number*>(layer->cache);
      Attention<Number>(model_.heads, tokens_, cache, qkv_, mixed_, mixed_stride_).work(member, rest.first);
      member.barrier();
      const auto mixed = [this](std::ptrdiff_t row, float* numbers) {
        std::copy_n(mixed_ + row * mixed_stride_, mixed_stride_, numbers);
      };
      multiply(*layer->output, rest, mixed, Output(hidden_, stride_, true), member, layer->gate_up);
      mlp(*layer, rest, member, is_last ? model_.head : layer[1].qkv);
    }
  }

  // Logits (tokens, vocabulary).
  void head(const TeamMember& member, Number* logits) const {
    const Output output(logits, model_.head->outputs);
    multiply(*model_.head, all_, norm(model_.norm), output, member, nullptr);
  }

  // What the layers make of the last token (width,).
  void last(Number* hidden) const {
    const Output output(hidden, model_.width);
    for (std::ptrdiff_t i = 0; i < model_.width; i += kLanes)
      output.put(0, i, load(hidden_ + (all_.count - 1) * stride_ + i), model_.width - i);
  }

 private:

  static constexpr std::ptrdiff_t kHalfUnit = 32; // outputs that every level's GEMM can begin with

  void mlp(const Layer& layer, const Span& span, const TeamMember& member, const LinearWeights* next) const {
    const auto normed = norm(layer.mlp_norm);
    const bool has_whole_halves = layer.gate_up->num_parts == 2 || layer.gate_up->outputs / 2 % kHalfUnit == 0;
    if (span.are_many() && has_whole_halves) { // gates and what they let through meet in registers
      auto* gated = reinterpret_cast<Number*>(gates_);
      multiply(*layer.gate_up, span, normed, Output(gated, inner_), member, layer.down, true);
      const auto wide = [this, gated](std::ptrdiff_t row, float* numbers) { widen(gated + row * inner_, numbers); };
      multiply(*layer.down, span, wide, Output(hidden_, stride_, true), member, next);
    } else {
      multiply(*layer.gate_up, span, normed, Output(gates_, 2 * inner_), member, layer.down);
      const auto gated = [this](std::ptrdiff_t row, float* numbers) { gate(gates_ + row * 2 * inner_, numbers); };
      multiply(*layer.down, span, gated, Output(hidden_, stride_, true), member, next);
    }
  }

  // fill(row, numbers) gives a row of inputs, with zeros up to padded_inputs(inputs); `next` is what comes after this.
  template <typename Fill>
  void multiply(const LinearWeights& linear, const Span& span, const Fill& fill, const Output& to, const TeamMember& member,
                const LinearWeights* next, bool is_gated = false) const {
    const Output output = to.from(span.first);
    static thread_local Scratch<float> numbers;
    const std::ptrdiff_t width = padded_inputs(linear.inputs);
    if (span.are_many()) {
      const Columns columns(*columns_, linear, span.count, std::is_same_v<Number, Bfloat16>);
      columns.pack(member, [&](std::ptrdiff_t row, float* wide) { fill(span.first + row, wide); });
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
    for (std::ptrdiff_t i = 0; i < padded_inputs(inner_); i += kLanes)
      store(gated + i, silu(load(gates + i, inner_ - i)) * load(gates + inner_ + i, inner_ - i));
  }

  void widen(const Number* narrow, float* wide) const {
    for (std::ptrdiff_t i = 0; i < padded_inputs(inner_); i += kLanes) store(wide + i, load(narrow + i, inner_ - i));
  }

  const Model& model_;
  const Tokens<Number>& tokens_;
  const Result result_;
  const Span all_;
  const std::ptrdiff_t stride_, mixed_stride_, inner_;
  float *hidden_, *mixed_, *qkv_, *gates_;
  Scratch<std::uint8_t>* columns_;
};

} // namespace fastvlm::FASTVLM_LEVEL
