// Attention of new tokens over the KV cache: several tokens of one slot, or one token of each of several slots.

#pragma once

#include <cmath>
#include <limits>

#include "exponential.hpp"
#include "amx/tiles.hpp"
#include "linear_weights.hpp"
#include "team.hpp"

namespace fastvlm::FASTVLM_LEVEL {

// Shapes of a decoder's attention: `heads` query heads share `kv_heads` heads of keys and values.
struct Heads {
  std::ptrdiff_t heads, kv_heads, width, context;
  std::ptrdiff_t group() const { return heads / kv_heads; }
  std::ptrdiff_t row() const { return (heads + 2 * kv_heads) * width; } // queries, keys and values of a token
};

// New tokens: where each is put, and the tables (positions, width) by which heads are turned.
struct Tokens {
  std::ptrdiff_t count;
  bool are_a_prompt; // they follow one another in one slot; else each is of another slot
  const std::int64_t *slots, *positions;
  const Bfloat16 *cos, *sin; // the first half of sin is negated
};

// One layer: `qkv` (tokens, heads + 2 kv_heads, width) float32 -> `mixed` (tokens, mixed_stride) float32.
class Attention {
 public:
  Attention(const Heads& heads, const Tokens& tokens, Bfloat16* cache, const float* qkv, float* mixed,
            std::ptrdiff_t mixed_stride)
      : heads_(heads), tokens_(tokens), cache_(cache), qkv_(qkv), mixed_(mixed), mixed_stride_(mixed_stride) {}

  // Results for the tokens from `first` on. A prompt's keys and values are in the cache before any is looked at.
  void work(const TeamMember& member, std::ptrdiff_t first) const {
    if (tokens_.are_a_prompt) {
      for (std::ptrdiff_t i = member.index; i < tokens_.count; i = member.claim())
        for (std::ptrdiff_t kv_head = 0; kv_head < heads_.kv_heads; ++kv_head) keep(i, kv_head);
      member.barrier();
    }
    const std::ptrdiff_t at_a_time = tokens_.are_a_prompt ? kTileRows / heads_.group() : 1;
    const std::ptrdiff_t count = (tokens_.count - first + at_a_time - 1) / at_a_time * heads_.kv_heads;
    const auto part = [&](std::ptrdiff_t index) {
      const std::ptrdiff_t token = first + index / heads_.kv_heads * at_a_time;
      return Part{token, std::min(at_a_time, tokens_.count - token), index % heads_.kv_heads};
    };
    if (member.index < count && !tokens_.are_a_prompt) ask_for(part(member.index));
    for (std::ptrdiff_t index = member.index; index < count;) {
      const std::ptrdiff_t next = member.claim();
      if (!tokens_.are_a_prompt) keep(part(index).token, part(index).kv_head);
      attend(part(index), part(next < count ? next : index));
      index = next;
    }
  }

 private:
  static constexpr std::ptrdiff_t kMaxWidth = 256;
  static constexpr int kColumns = 8; // queries whose results are in registers

  // Tokens that follow one another, and the head of keys and values that some of their heads share: 16 queries at most.
  struct Part {
    std::ptrdiff_t token, count, kv_head;
  };

  Bfloat16* keys(std::ptrdiff_t token, std::ptrdiff_t kv_head) const {
    return cache_ + (tokens_.slots[token] * 2 * heads_.kv_heads + kv_head) * heads_.context * heads_.width;
  }
  const Bfloat16* values(const Bfloat16* keys) const { return keys + values_from_keys(); }
  std::ptrdiff_t values_from_keys() const { return heads_.kv_heads * heads_.context * heads_.width; }

  // Puts a token's key and value of one head into the cache.
  void keep(std::ptrdiff_t token, std::ptrdiff_t kv_head) const {
    const float* key = qkv_ + token * heads_.row() + (heads_.heads + kv_head) * heads_.width;
    const float* value = key + heads_.kv_heads * heads_.width;
    const std::ptrdiff_t position = tokens_.positions[token];
    Bfloat16* kept = keys(token, kv_head);
    turn(key, position, kept + position * heads_.width);
    for (std::ptrdiff_t i = 0; i < heads_.width; i += kLanes)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(kept + values_from_keys() + position * heads_.width + i),
                          narrowed(_mm512_loadu_ps(value + i)));
  }

  // A head turned to its position.
  void turn(const float* head, std::ptrdiff_t position, Bfloat16* turned) const {
    const std::ptrdiff_t width = heads_.width, half = width / 2;
    const Bfloat16 *cos = tokens_.cos + position * width, *sin = tokens_.sin + position * width;
    for (std::ptrdiff_t i = 0; i < width; i += kLanes) {
      const __m512 other = _mm512_mul_ps(_mm512_loadu_ps(head + (i < half ? i + half : i - half)), wide(sin + i));
      const __m512 value = _mm512_fmadd_ps(_mm512_loadu_ps(head + i), wide(cos + i), other);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(turned + i), narrowed(value));
    }
  }

  static __m512 wide(const Bfloat16* halves) {
    return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
  }

  // What a slot holds comes from memory.
  void ask_for(const Part& part) const {
    const Bfloat16* held = keys(part.token, part.kv_head);
    for (std::ptrdiff_t i = 0; i < tokens_.positions[part.token] * heads_.width; i += kBlock) {
      _mm_prefetch(held + i, _MM_HINT_T1);
      _mm_prefetch(values(held) + i, _MM_HINT_T1);
    }
  }

  // `next` is what this thread does afterwards: its keys and values are asked for.
  void attend(const Part& part, const Part& next) const {
    static thread_local Scratch<float> scratch;
    const auto& [token, count, kv_head] = part;
    const std::ptrdiff_t seen = tokens_.positions[token + count - 1] + 1;
    const Bfloat16 *held = keys(token, kv_head), *ahead = keys(next.token, next.kv_head);
    float* scores = scratch.at_least(rounded_up(seen, kTileRows) * kLanes);
    score(token, count, kv_head, held, seen, scores);
    alignas(64) float factors[kLanes];
    _mm512_store_ps(factors, soften(scores, token, count, seen));
    const std::ptrdiff_t columns = count * heads_.group();
    for (std::ptrdiff_t first = 0; first < columns; first += kColumns)
      for (std::ptrdiff_t at = 0; at < heads_.width; at += kBlock) {
        float results[kColumns][kBlock];
        mix(scores + first, seen, values(held) + at, ahead + at, results);
        for (std::ptrdiff_t i = 0; i < std::min<std::ptrdiff_t>(kColumns, columns - first); ++i)
          put(results[i], factors[first + i], token, first + i, kv_head, at);
      }
  }

  // Products of keys and queries (seen, 16): keys are the left operand of tile products, as weights are elsewhere.
  // Tiles of keys may reach beyond the last token, into other heads or values.
  void score(std::ptrdiff_t token, std::ptrdiff_t count, std::ptrdiff_t kv_head, const Bfloat16* held,
             std::ptrdiff_t seen, float* scores) const {
    alignas(64) Bfloat16 turned[kTileRows * kMaxWidth];
    alignas(64) std::uint8_t columns[kMaxWidth / kBlock * kTileBytes];
    const std::ptrdiff_t width = heads_.width, group = heads_.group();
    for (std::ptrdiff_t i = 0; i < count * group; ++i) {
      const float* query = qkv_ + (token + i / group) * heads_.row() + (kv_head * group + i % group) * width;
      turn(query, tokens_.positions[token + i / group], turned + i * width);
    }
    pack_columns(reinterpret_cast<const std::uint32_t*>(turned), width / 2, static_cast<int>(count * group), width / 2,
                 columns);
    settle_memory();
    for (std::ptrdiff_t key = 0; key < seen; key += kTileRows) {
      _tile_zero(0);
      for (std::ptrdiff_t i = 0; i < width / kBlock; ++i) {
        _tile_loadd(2, held + key * width + i * kBlock, width * sizeof(Bfloat16));
        _tile_loadd(3, columns + i * kTileBytes, kTileRowBytes);
        _tile_dpbf16ps(0, 2, 3);
      }
      _tile_stored(0, scores + key * kLanes, kTileRowBytes);
    }
    settle_memory();
  }

  // Columns of tokens that see the key at `position`.
  __mmask16 seeing(std::ptrdiff_t token, std::ptrdiff_t count, std::ptrdiff_t position) const {
    const std::ptrdiff_t blind = std::max<std::ptrdiff_t>(position - tokens_.positions[token], 0);
    return static_cast<__mmask16>(blind >= count ? 0 : ~0u << blind * heads_.group());
  }

  // Scores become exponentials; gives one over their sum, for each of 16 columns.
  __m512 soften(float* scores, std::ptrdiff_t token, std::ptrdiff_t count, std::ptrdiff_t seen) const {
    __m512 largest = _mm512_set1_ps(-std::numeric_limits<float>::infinity()), sum = _mm512_setzero_ps();
    for (std::ptrdiff_t i = 0; i < seen; ++i)
      largest = _mm512_mask_max_ps(largest, seeing(token, count, i), largest, _mm512_loadu_ps(scores + i * kLanes));
    const __m512 scale = _mm512_set1_ps(1.0f / std::sqrt(static_cast<float>(heads_.width)));
    for (std::ptrdiff_t i = 0; i < seen; ++i) {
      const __m512 score = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(scores + i * kLanes), largest), scale);
      const __m512 weight = _mm512_maskz_mov_ps(seeing(token, count, i), exponential(score));
      sum = _mm512_add_ps(sum, weight);
      _mm512_storeu_ps(scores + i * kLanes, weight);
    }
    return _mm512_div_ps(_mm512_set1_ps(1), sum);
  }

  // 32 columns of the values, added up with 8 columns of weights; asks for as much of what lies `ahead`.
  void mix(const float* weights, std::ptrdiff_t count, const Bfloat16* values, const Bfloat16* ahead,
           float results[kColumns][kBlock]) const {
    __m512 even[kColumns], odd[kColumns];
    UNROLLED
    for (int i = 0; i < kColumns; ++i) even[i] = odd[i] = _mm512_setzero_ps();
    for (std::ptrdiff_t token = 0; token < count; ++token, weights += kLanes, values += heads_.width) {
      _mm_prefetch(ahead, _MM_HINT_T1);
      _mm_prefetch(ahead + values_from_keys(), _MM_HINT_T1);
      ahead += heads_.width;
      const __m512i both = _mm512_loadu_si512(values);
      const __m512 left = even_lanes(both), right = odd_lanes(both);
      UNROLLED
      for (int i = 0; i < kColumns; ++i) {
        const __m512 weight = _mm512_set1_ps(weights[i]);
        even[i] = _mm512_fmadd_ps(weight, left, even[i]);
        odd[i] = _mm512_fmadd_ps(weight, right, odd[i]);
      }
    }
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    UNROLLED
    for (int i = 0; i < kColumns; ++i) {
      _mm512_storeu_ps(results[i], _mm512_permutex2var_ps(even[i], low, odd[i]));
      _mm512_storeu_ps(results[i] + kLanes, _mm512_permutex2var_ps(even[i], high, odd[i]));
    }
  }

  void put(const float* results, float factor, std::ptrdiff_t token, std::ptrdiff_t column, std::ptrdiff_t kv_head,
           std::ptrdiff_t at) const {
    const std::ptrdiff_t group = heads_.group(), head = kv_head * group + column % group;
    float* mixed = mixed_ + (token + column / group) * mixed_stride_ + head * heads_.width + at;
    for (int i = 0; i < kBlock; i += kLanes)
      _mm512_storeu_ps(mixed + i, _mm512_mul_ps(_mm512_loadu_ps(results + i), _mm512_set1_ps(factor)));
  }

  const Heads heads_;
  const Tokens& tokens_;
  Bfloat16* cache_;
  const float* qkv_;
  float* mixed_;
  const std::ptrdiff_t mixed_stride_;
};

} // namespace fastvlm::FASTVLM_LEVEL
