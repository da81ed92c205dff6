// Attention of new tokens over the KV cache: several tokens of one slot, or one token of each of several slots.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "exponential.hpp"
#include "linear_weights.hpp"
#include "scratch.hpp"
#include "team.hpp"
#if defined(__AMX_TILE__)
#include "amx/attention_products.hpp"
#else
#include "attention_products.hpp"
#endif

namespace fastvlm::FASTVLM_LEVEL {

// Shapes of a decoder's attention: `heads` query heads share `kv_heads` heads of keys and values.
struct Heads {
  std::ptrdiff_t heads, kv_heads, width, context;
  std::ptrdiff_t group() const { return heads / kv_heads; }
  std::ptrdiff_t row() const { return (heads + 2 * kv_heads) * width; } // queries, keys and values of a token
};

// New tokens: where each is put, and the tables (positions, width) by which heads are turned.
template <typename Number>
struct Tokens {
  std::ptrdiff_t count;
  bool are_consecutive; // they follow one another in one slot; else any of any slot
  const std::int64_t *slots, *positions;
  const Number *cos, *sin; // the first half of sin is negated
};

// One layer: `qkv` (tokens, heads + 2 kv_heads, width) float32 -> `mixed` (tokens, mixed_stride) float32.
template <typename Number>
class Attention {
 public:
  Attention(const Heads& heads, const Tokens<Number>& tokens, Number* cache, const float* qkv, float* mixed,
            std::ptrdiff_t mixed_stride)
      : heads_(heads), tokens_(tokens), cache_(cache), qkv_(qkv), mixed_(mixed), mixed_stride_(mixed_stride) {}

  // Results for the tokens from `first` on. All new keys and values are in the cache before any is looked at.
  void work(const TeamMember& member, std::ptrdiff_t first) const {
    for (std::ptrdiff_t i = member.index; i < tokens_.count; i = member.claim())
      for (std::ptrdiff_t kv_head = 0; kv_head < heads_.kv_heads; ++kv_head) keep(i, kv_head);
    member.barrier();
    const std::ptrdiff_t at_a_time = tokens_.are_consecutive ? kScoreColumns / heads_.group() : 1;
    const std::ptrdiff_t count = (tokens_.count - first + at_a_time - 1) / at_a_time * heads_.kv_heads;
    const auto part = [&](std::ptrdiff_t index) {
      const std::ptrdiff_t token = first + index / heads_.kv_heads * at_a_time;
      return Part{token, std::min(at_a_time, tokens_.count - token), index % heads_.kv_heads};
    };
    if (member.index < count && !tokens_.are_consecutive) ask_for(part(member.index));
    for (std::ptrdiff_t index = member.index; index < count;) {
      const std::ptrdiff_t next = member.claim();
      attend(part(index), part(next < count ? next : index));
      index = next;
    }
  }

 private:
  static constexpr int kScoreVectors = kScoreColumns / kLanes;

  // Tokens that follow one another, and the head of keys and values that some of their heads share: 16 queries at most.
  struct Part {
    std::ptrdiff_t token, count, kv_head;
  };

  Number* keys(std::ptrdiff_t token, std::ptrdiff_t kv_head) const {
    return cache_ + (tokens_.slots[token] * 2 * heads_.kv_heads + kv_head) * heads_.context * heads_.width;
  }
  std::ptrdiff_t values_from_keys() const { return heads_.kv_heads * heads_.context * heads_.width; }

  // Puts a token's key and value of one head into the cache.
  void keep(std::ptrdiff_t token, std::ptrdiff_t kv_head) const {
    const float* key = qkv_ + token * heads_.row() + (heads_.heads + kv_head) * heads_.width;
    const float* value = key + heads_.kv_heads * heads_.width;
    const std::ptrdiff_t position = tokens_.positions[token];
    Number* kept = keys(token, kv_head) + position * heads_.width;
    turn(key, position, kept);
    for (std::ptrdiff_t i = 0; i < heads_.width; i += kLanes) store(kept + values_from_keys() + i, load(value + i));
  }

  // A head turned to its position.
  template <typename To>
  void turn(const float* head, std::ptrdiff_t position, To* turned) const {
    const std::ptrdiff_t width = heads_.width, half = width / 2;
    const Number *cos = tokens_.cos + position * width, *sin = tokens_.sin + position * width;
    for (std::ptrdiff_t i = 0; i < width; i += kLanes) {
      const Floats other = load(head + (i < half ? i + half : i - half)) * load(sin + i);
      store(turned + i, multiply_add(load(head + i), load(cos + i), other));
    }
  }

  // What a slot holds comes from memory.
  void ask_for(const Part& part) const {
    const Number* held = keys(part.token, part.kv_head);
    const std::ptrdiff_t line = kCacheLine / static_cast<std::ptrdiff_t>(sizeof(Number));
    for (std::ptrdiff_t i = 0; i < tokens_.positions[part.token] * heads_.width; i += line) {
      __builtin_prefetch(held + i, 0, 2);
      __builtin_prefetch(held + values_from_keys() + i, 0, 2);
    }
  }

  // `next` is what this thread does afterwards: its keys and values are asked for.
  void attend(const Part& part, const Part& next) const {
    static thread_local Scratch<float> memory;
    const auto& [token, count, kv_head] = part;
    const std::ptrdiff_t seen = tokens_.positions[token + count - 1] + 1, width = heads_.width;
    const std::ptrdiff_t columns = count * heads_.group();
    const Number *held = keys(token, kv_head), *ahead = keys(next.token, next.kv_head);
    // Results are written in whole tiles of columns.
    float* scores = memory.at_least(rounded_up(seen, kScoreColumns) * kScoreColumns + 3 * kScoreColumns * width);
    float* queries = scores + rounded_up(seen, kScoreColumns) * kScoreColumns;
    float* results = queries + kScoreColumns * width;
    for (std::ptrdiff_t i = 0; i < columns; ++i) {
      const std::ptrdiff_t head = kv_head * heads_.group() + i % heads_.group(), of = token + i / heads_.group();
      turn(qkv_ + of * heads_.row() + head * width, tokens_.positions[of], queries + i * width);
    }
    score_keys(held, seen, width, queries, columns, scores);
    float factors[kScoreColumns];
    for (int vector = 0; vector * kLanes < columns; ++vector)
      store(factors + vector * kLanes, soften(scores + vector * kLanes, vector, token, seen));
    mix_values(scores, columns, seen, held + values_from_keys(), width, ahead, ahead + values_from_keys(), results);
    for (std::ptrdiff_t i = 0; i < columns; ++i) put(results + i * width, factors[i], token, i, kv_head);
  }

  // The first column of tokens that see the key at `position`.
  std::ptrdiff_t first_seeing(std::ptrdiff_t token, std::ptrdiff_t position) const {
    return std::max<std::ptrdiff_t>(position - tokens_.positions[token], 0) * heads_.group();
  }

  // Scores of a vector of columns become exponentials, of keys that are not seen zeros; gives one over their sum.
  Floats soften(float* scores, int vector, std::ptrdiff_t token, std::ptrdiff_t seen) const {
    const Floats columns = lane_numbers() + broadcast(static_cast<float>(vector * kLanes));
    const std::ptrdiff_t all_see = tokens_.positions[token] + 1;
    const auto limit = [&](std::ptrdiff_t key) { return broadcast(static_cast<float>(first_seeing(token, key))); };
    Floats most = broadcast(-std::numeric_limits<float>::infinity()), sum = zeros();
    for (std::ptrdiff_t i = 0; i < std::min(all_see, seen); ++i) most = larger(most, load(scores + i * kScoreColumns));
    for (std::ptrdiff_t i = all_see; i < seen; ++i)
      most = where_at_least(columns, limit(i), larger(most, load(scores + i * kScoreColumns)), most);
    const Floats scale = broadcast(1.0f / std::sqrt(static_cast<float>(heads_.width)));
    for (std::ptrdiff_t i = 0; i < seen; ++i) {
      float* at = scores + i * kScoreColumns;
      Floats weight = exponential((load(at) - most) * scale);
      if (i >= all_see) weight = where_at_least(columns, limit(i), weight, zeros());
      sum = sum + weight;
      store(at, weight);
    }
    return broadcast(1) / sum;
  }

  void put(const float* results, float factor, std::ptrdiff_t token, std::ptrdiff_t column, std::ptrdiff_t kv_head) const {
    const std::ptrdiff_t group = heads_.group(), head = kv_head * group + column % group;
    float* mixed = mixed_ + (token + column / group) * mixed_stride_ + head * heads_.width;
    for (std::ptrdiff_t i = 0; i < heads_.width; i += kLanes)
      store(mixed + i, load(results + i) * broadcast(factor));
  }

  const Heads heads_;
  const Tokens<Number>& tokens_;
  Number* cache_;
  const float* qkv_;
  float* mixed_;
  const std::ptrdiff_t mixed_stride_;
};

} // namespace fastvlm::FASTVLM_LEVEL
