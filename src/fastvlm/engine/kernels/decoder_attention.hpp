// Attention of new tokens, one of each of several slots, over what the slots hold.

#pragma once

#include <cmath>
#include <limits>

#include "products.hpp"
#include "team.hpp"

namespace fastvlm {

// e^x, 2e-7 off relatively; 0 and infinity are not reached (x is held in -87 ... 88), NaN stays.
inline __m512 exponential(__m512 x) {
  x = _mm512_min_ps(_mm512_set1_ps(88.0f), _mm512_max_ps(_mm512_set1_ps(-87.0f), x));
  const __m512 power = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
  __m512 rest = _mm512_fnmadd_ps(power, _mm512_set1_ps(0.693359375f), x); // ln 2 in two parts
  rest = _mm512_fnmadd_ps(power, _mm512_set1_ps(-2.12194440e-4f), rest);
  __m512 sum = _mm512_set1_ps(1.0f / 720);
  const float coefficients[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  for (const float coefficient : coefficients) sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(coefficient));
  return _mm512_scalef_ps(sum, power);
}

// Shapes of a decoder's attention: `heads` query heads share `kv_heads` heads of keys and values.
struct Heads {
  std::ptrdiff_t heads, kv_heads, width, context;
  std::ptrdiff_t group() const { return heads / kv_heads; }
};

// The tokens of a step: where each is put, and the tables (positions, width) by which heads are turned.
struct Tokens {
  std::ptrdiff_t count;
  const std::int64_t *slots, *positions;
  const Bfloat16 *cos, *sin; // the first half of sin is negated
};

// One layer: `qkv` (tokens, heads + 2 kv_heads, width) float32 -> `mixed` (tokens, mixed_stride) float32.
class Attention {
 public:
  Attention(const Heads& heads, const Tokens& tokens, Bfloat16* cache, const float* qkv, float* mixed,
            std::ptrdiff_t mixed_stride)
      : heads_(heads), tokens_(tokens), cache_(cache), qkv_(qkv), mixed_(mixed), mixed_stride_(mixed_stride) {}

  void work(const Member& member) const {
    const std::ptrdiff_t count = tokens_.count * heads_.kv_heads;
    for (std::ptrdiff_t i = member.index; i < count; i = member.claim()) attend(i / heads_.kv_heads, i % heads_.kv_heads);
  }

 private:
  static constexpr std::ptrdiff_t kMaxWidth = 256;

  void attend(std::ptrdiff_t token, std::ptrdiff_t kv_head) const {
    static thread_local Scratch<float> scratch;
    const std::ptrdiff_t width = heads_.width, group = heads_.group(), position = tokens_.positions[token];
    const float* own = qkv_ + token * (heads_.heads + 2 * heads_.kv_heads) * width;
    const std::ptrdiff_t plane = heads_.context * width;
    Bfloat16* keys = cache_ + (tokens_.slots[token] * 2 * heads_.kv_heads + kv_head) * plane;
    Bfloat16* values = keys + heads_.kv_heads * plane;
    turn(own + (heads_.heads + kv_head) * width, position, keys + position * width);
    narrow(own + (heads_.heads + heads_.kv_heads + kv_head) * width, values + position * width);
    float* scores = scratch.at_least(rounded_up(position + 1, kTileRows) * kLanes);
    score(own + kv_head * group * width, position, keys, scores);
    const __m512 factors = soften(scores, position + 1);
    for (std::ptrdiff_t first = 0; first < group; first += kHeadsAtATime)
      for (std::ptrdiff_t column = 0; column < width; column += kBlock)
        mix(scores + first, position + 1, values + column, factors, first,
            mixed_ + token * mixed_stride_ + kv_head * group * width + column);
  }

  // A head turned to its position.
  void turn(const float* head, std::ptrdiff_t position, Bfloat16* turned) const {
    const std::ptrdiff_t width = heads_.width, half = width / 2;
    const Bfloat16 *cos = tokens_.cos + position * width, *sin = tokens_.sin + position * width;
    for (std::ptrdiff_t i = 0; i < width; i += kLanes) {
      const __m512 other = _mm512_loadu_ps(head + (i < half ? i + half : i - half));
      const __m512 value = _mm512_fmadd_ps(_mm512_loadu_ps(head + i), wide(cos + i), _mm512_mul_ps(other, wide(sin + i)));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(turned + i), narrowed(value));
    }
  }

  void narrow(const float* head, Bfloat16* narrow) const {
    for (std::ptrdiff_t i = 0; i < heads_.width; i += kLanes)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(narrow + i), narrowed(_mm512_loadu_ps(head + i)));
  }

  static __m512 wide(const Bfloat16* halves) {
    return widened(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
  }

  // Products of keys and queries (tokens, 16): keys are the left operand of tile products, as weights are elsewhere.
  // Tiles of keys may reach beyond the last token, into other heads or values.
  void score(const float* queries, std::ptrdiff_t position, const Bfloat16* keys, float* scores) const {
    alignas(64) Bfloat16 turned[kTileRows * kMaxWidth];
    alignas(64) std::uint8_t columns[kMaxWidth / kBlock * kTileBytes];
    const std::ptrdiff_t width = heads_.width;
    const int group = static_cast<int>(heads_.group());
    for (int head = 0; head < group; ++head) turn(queries + head * width, position, turned + head * width);
    pack_columns(reinterpret_cast<const std::uint32_t*>(turned), width / 2, group, width / 2, columns);
    settle_memory();
    for (std::ptrdiff_t token = 0; token <= position; token += kTileRows) {
      _tile_zero(0);
      for (std::ptrdiff_t i = 0; i < width / kBlock; ++i) {
        _tile_loadd(2, keys + token * width + i * kBlock, width * sizeof(Bfloat16));
        _tile_loadd(3, columns + i * kTileBytes, kTileRowBytes);
        _tile_dpbf16ps(0, 2, 3);
      }
      _tile_stored(0, scores + token * kLanes, kTileRowBytes);
    }
    settle_memory();
  }

  // Scores become exponentials; gives one over their sum, for each of 16 heads.
  __m512 soften(float* scores, std::ptrdiff_t count) const {
    __m512 largest = _mm512_set1_ps(-std::numeric_limits<float>::infinity()), sum = _mm512_setzero_ps();
    for (std::ptrdiff_t i = 0; i < count; ++i) largest = _mm512_max_ps(largest, _mm512_loadu_ps(scores + i * kLanes));
    const __m512 scale = _mm512_set1_ps(1.0f / std::sqrt(static_cast<float>(heads_.width)));
    for (std::ptrdiff_t i = 0; i < count; ++i) {
      const __m512 score = _mm512_sub_ps(_mm512_loadu_ps(scores + i * kLanes), largest);
      const __m512 weight = exponential(_mm512_mul_ps(score, scale));
      sum = _mm512_add_ps(sum, weight);
      _mm512_storeu_ps(scores + i * kLanes, weight);
    }
    return _mm512_div_ps(_mm512_set1_ps(1), sum);
  }

  static constexpr int kHeadsAtATime = 8;

  // 32 columns of the values, added up with the weights of 8 heads from `first` on.
  void mix(const float* weights, std::ptrdiff_t count, const Bfloat16* values, __m512 factors, std::ptrdiff_t first,
           float* mixed) const {
    __m512 even[kHeadsAtATime], odd[kHeadsAtATime];
    UNROLLED
    for (int i = 0; i < kHeadsAtATime; ++i) even[i] = odd[i] = _mm512_setzero_ps();
    for (std::ptrdiff_t token = 0; token < count; ++token, weights += kLanes, values += heads_.width) {
      const __m512i both = _mm512_loadu_si512(values);
      const __m512 left = even_lanes(both), right = odd_lanes(both);
      UNROLLED
      for (int i = 0; i < kHeadsAtATime; ++i) {
        const __m512 weight = _mm512_set1_ps(weights[i]);
        even[i] = _mm512_fmadd_ps(weight, left, even[i]);
        odd[i] = _mm512_fmadd_ps(weight, right, odd[i]);
      }
    }
    alignas(64) float factor[kLanes];
    _mm512_store_ps(factor, factors);
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    UNROLLED
    for (int i = 0; i < kHeadsAtATime; ++i) {
      if (first + i >= heads_.group()) break;
      const __m512 scale = _mm512_set1_ps(factor[first + i]);
      float* row = mixed + (first + i) * heads_.width;
      _mm512_storeu_ps(row, _mm512_mul_ps(scale, _mm512_permutex2var_ps(even[i], low, odd[i])));
      _mm512_storeu_ps(row + kLanes, _mm512_mul_ps(scale, _mm512_permutex2var_ps(even[i], high, odd[i])));
    }
  }

  const Heads heads_;
  const Tokens& tokens_;
  Bfloat16* cache_;
  const float* qkv_;
  float* mixed_;
  const std::ptrdiff_t mixed_stride_;
};

} // namespace fastvlm
