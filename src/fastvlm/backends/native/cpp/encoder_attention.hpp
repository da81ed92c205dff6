// Attention of heads that are 32 wide, without a mask: the encoder's. Keys and values are packed as weights are, so that
// scores and results are linear layers on some queries at a time.

#pragma once

#include <algorithm>
#include <cstddef>
#include <limits>
#include <type_traits>

#include "encoder_linear.hpp"
#include "exponential.hpp"

namespace fastvlm::FASTVLM_LEVEL {

constexpr std::ptrdiff_t kQueries = 24; // at a time, so that their scores stay in L2

template <typename Number>
struct Heads {
  const Number* qkv; // (3, heads, rows, 32): queries, already scaled, keys, values; this image's rows are the first
  Number* output;    // (tokens, heads, 32)
  std::ptrdiff_t tokens, heads, rows;

  const Number* row(int which, std::ptrdiff_t head) const { return qkv + (which * heads + head) * rows * kHeadWidth; }
};

inline float as_right(float number, float) { return number; }
inline Bfloat16 as_right(Bfloat16 number, Bfloat16) { return number; }
inline float as_right(Bfloat16 number, float) {
  const std::uint32_t bits = std::uint32_t{number} << 16;
  float widened;
  std::memcpy(&widened, &bits, sizeof widened);
  return widened;
}

// Packs at(output, input) of a layer as PackedLayer has them.
template <typename Product, typename At>
void pack(typename Product::Right* to, std::ptrdiff_t outputs, std::ptrdiff_t inputs, const At& at) {
  for (std::ptrdiff_t first = 0; first < outputs; first += kTileOutputs)
    for (std::ptrdiff_t step = 0; step < inputs; step += Product::kDepth)
      for (std::ptrdiff_t output = first; output < first + kTileOutputs; ++output)
        for (std::ptrdiff_t input = step; input < step + Product::kDepth; ++input)
          *to++ = output < outputs && input < inputs ? at(output, input) : typename Product::Right{};
}

// exp(x - the largest of them) of `count` numbers, written as `to`, which may be the same memory; their sum is returned.
template <typename Left>
float exponentials(const float* from, std::ptrdiff_t count, Left* to) {
  Floats largest_so_far = broadcast(-std::numeric_limits<float>::infinity());
  std::ptrdiff_t i = 0;
  for (; i + kLanes <= count; i += kLanes) largest_so_far = larger(largest_so_far, load(from + i));
  float most = largest(largest_so_far);
  for (; i < count; ++i) most = std::max(most, from[i]);
  const Floats unit = broadcast(kLog2E), offset = broadcast(most * kLog2E);
  const auto probability = [&](Floats x) { return exp2(multiply_add(x, unit, zeros() - offset)); };
  Floats total = zeros();
  for (i = 0; i + kLanes <= count; i += kLanes) {
    const Floats values = probability(load(from + i));
    total = total + values;
    store(to + i, values);
  }
  if (i < count) {
    alignas(64) float rest[kLanes] = {};
    store(rest, probability(load(from + i, count - i)), count - i);
    total = total + load(rest);
    store(to + i, load(rest), count - i);
  }
  return sum(total);
}

struct WriteScores {
  float* to;
  std::ptrdiff_t stride;
  void operator()(const Floats (&sums)[kTileVectors], std::ptrdiff_t row, std::ptrdiff_t key) const {
    UNROLLED
    for (int i = 0; i < kTileVectors; ++i) store(to + row * stride + key + i * kLanes, sums[i]);
  }
};

// Sums times a factor of the row.
template <typename Number>
struct WriteScaled {
  Number* to;
  std::ptrdiff_t stride;
  const float* factors;
  void operator()(const Floats (&sums)[kTileVectors], std::ptrdiff_t row, std::ptrdiff_t output) const {
    const Floats factor = broadcast(factors[row]);
    UNROLLED
    for (int i = 0; i < kTileVectors; ++i) store(to + row * stride + output + i * kLanes, sums[i] * factor);
  }
};

template <typename Number>
class Head {
 public:
  Head(const Heads<Number>& heads, std::ptrdiff_t head) : heads_(heads), head_(head) {
    static thread_local Scratch<Right> key_memory, value_memory;
    const std::ptrdiff_t tokens = heads.tokens;
    Right *const keys = key_memory.at_least(rounded_up(tokens, kTileOutputs) * kHeadWidth),
          *const values = value_memory.at_least(rounded_up(tokens, Product::kDepth) * rounded_up(kHeadWidth, kTileOutputs));
    const Number *const key = heads.row(1, head), *const value = heads.row(2, head);
    pack<Product>(keys, tokens, kHeadWidth,
                  [key](std::ptrdiff_t token, std::ptrdiff_t i) { return as_right(key[token * kHeadWidth + i], Right{}); });
    pack<Product>(values, kHeadWidth, tokens,
                  [value](std::ptrdiff_t i, std::ptrdiff_t token) { return as_right(value[token * kHeadWidth + i], Right{}); });
    keys_ = {keys, nullptr, kHeadWidth, tokens};
    values_ = {values, nullptr, tokens, kHeadWidth};
  }

  void attend() const {
    for (std::ptrdiff_t first = 0; first < heads_.tokens; first += kQueries)
      attend(first, std::min(kQueries, heads_.tokens - first));
  }

 private:
  using Product = std::conditional_t<std::is_same_v<typename ProductOf<Number>::type, WidenedProduct>, FloatProduct,
                                     typename ProductOf<Number>::type>;
  using Left = typename Product::Left;
  using Right = typename Product::Right;

  void attend(std::ptrdiff_t first, std::ptrdiff_t count) const {
    static thread_local Scratch<Left> query_memory, probability_memory;
    static thread_local Scratch<float> score_memory;
    const LeftRows<Left> queries(query_memory, count, kHeadWidth), probabilities(probability_memory, count, heads_.tokens);
    const LeftRows<float> scores(score_memory, count, rounded_up(heads_.tokens, kTileOutputs));
    queries.copy(heads_.row(0, head_) + first * kHeadWidth, kHeadWidth);
    apply(queries, keys_, 0, keys_.panels(), WriteScores{scores.data, scores.stride});
    float factors[kQueries];
    for (std::ptrdiff_t row = 0; row < count; ++row) {
      Left* const to = probabilities.data + row * probabilities.stride;
      factors[row] = 1 / exponentials(scores.data + row * scores.stride, heads_.tokens, to);
      if (heads_.tokens % Product::kDepth) to[heads_.tokens] = Left{};
    }
    probabilities.clear_missing();
    const std::ptrdiff_t stride = heads_.heads * kHeadWidth;
    apply(probabilities, values_, 0, values_.panels(),
          WriteScaled<Number>{heads_.output + first * stride + head_ * kHeadWidth, stride, factors});
  }

  const Heads<Number>& heads_;
  const std::ptrdiff_t head_;
  PackedLayer<Product> keys_, values_;
};

} // namespace fastvlm::FASTVLM_LEVEL
