// Attention of heads that are 32 wide, without a mask: the encoder's.
//
// Everything is computed with queries as columns: scores are keys times queries, the result is values times
// probabilities. So a register holds the same key's numbers of 16 queries, and largest values and sums need no
// exchange between lanes. Keys are taken in parts whose scores stay in the first cache; what came before is scaled
// down when a part has a larger score (Milakov and Gimelshein 2018).

#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>

#include "blocks.hpp"
#include "../exponential.hpp"
#include "simd.hpp"
#include "../scratch.hpp"
#include "../threads.hpp"
#include "tiles.hpp"

namespace fastvlm::FASTVLM_LEVEL::encoder {

constexpr int kHeadWidth = 32;
constexpr int kPartKeys = 64;

struct Heads {
  const Bfloat16* qkv; // (3, heads, rows, 32): queries, already scaled, keys, values; this image's rows are the first
  Bfloat16* output;    // (tokens, heads, 32)
  std::ptrdiff_t tokens, heads, rows;

  const Bfloat16* row(int which, std::ptrdiff_t token, std::ptrdiff_t head) const {
    return qkv + ((which * heads + head) * rows + token) * kHeadWidth;
  }
};

// Two rows' numbers in turn: those of their first halves, those of their second halves.
struct TwoRows {
  Bfloat16 low[kBlock], high[kBlock];
  constexpr TwoRows() : low(), high() {
    for (int i = 0; i < kBlock; ++i) {
      low[i] = static_cast<Bfloat16>(i / 2 + (i % 2) * kBlock);
      high[i] = static_cast<Bfloat16>(low[i] + kLanes);
    }
  }
};
alignas(64) constexpr TwoRows kTwoRows;

// 16 queries on their way over the keys, each a column.
struct Queries {
  Bfloat16 numbers[kTileRows * kPanel]; // for each pair of dimensions the pairs of 16 queries
  float mixed[kHeadWidth * kLanes];     // probability times value so far, times the total
  float largest[kLanes], total[kLanes];
};

class Head {
 public:
  Head(const Heads& heads, std::ptrdiff_t head)
      : heads_(heads), head_(head), steps_((heads.tokens + kPanel - 1) / kPanel),
        blocks_((heads.tokens + kTileRows - 1) / kTileRows),
        keys_(key_memory().at_least(2 * steps_ * kPanel * kHeadWidth)), values_(keys_ + steps_ * kPanel * kHeadWidth),
        queries_(query_memory().at_least(blocks_)) {
    for (std::ptrdiff_t step = 0; step < steps_; ++step) lay_out(step);
    for (std::ptrdiff_t block = 0; block < blocks_; ++block) begin(queries_[block], block * kTileRows);
  }

  // A part of the keys after another, so that it stays in the first cache while all queries go over it. Tiles are
  // written one turn before registers read them, and the other way round, so that neither waits for the other.
  void attend() {
    const std::ptrdiff_t parts = (heads_.tokens + kPartKeys - 1) / kPartKeys, turns = parts * blocks_;
    score(0);
    for (std::ptrdiff_t turn = 0; turn < turns; ++turn) {
      if (turn + 1 < turns) score(turn + 1);
      exponentiate(turn);
      if (turn) add_values(turn - 1);
    }
    add_values(turns - 1);
    for (std::ptrdiff_t block = 0; block < blocks_; ++block) write(queries_[block], block * kTileRows);
  }

 private:
  static Scratch<Bfloat16>& key_memory() {
    static thread_local Scratch<Bfloat16> memory;
    return memory;
  }
  static Scratch<Queries>& query_memory() {
    static thread_local Scratch<Queries> memory;
    return memory;
  }

  __m512i row(int which, std::ptrdiff_t token) const {
    return token < heads_.tokens ? _mm512_loadu_si512(heads_.row(which, token, head_)) : _mm512_setzero_si512();
  }

  // 32 keys one after the other, and their values as 32 rows of one dimension each.
  void lay_out(std::ptrdiff_t step) {
    const __m512i low = _mm512_load_si512(kTwoRows.low), high = _mm512_load_si512(kTwoRows.high);
    __m512i first[kLanes], second[kLanes]; // dimensions 0 to 15 and 16 to 31 of pairs of keys
    for (int pair = 0; pair < kLanes; ++pair) {
      const std::ptrdiff_t token = step * kPanel + 2 * pair;
      _mm512_store_si512(keys_ + token * kHeadWidth, row(1, token));
      _mm512_store_si512(keys_ + (token + 1) * kHeadWidth, row(1, token + 1));
      const __m512i even = row(2, token), odd = row(2, token + 1);
      first[pair] = _mm512_permutex2var_epi16(even, low, odd);
      second[pair] = _mm512_permutex2var_epi16(even, high, odd);
    }
    transpose(first);
    transpose(second);
    Bfloat16* to = values_ + step * kStepSize;
    for (int i = 0; i < kLanes; ++i) {
      _mm512_store_si512(to + i * kPanel, first[i]);
      _mm512_store_si512(to + (i + kLanes) * kPanel, second[i]);
    }
  }

  void begin(Queries& queries, std::ptrdiff_t first) const {
    __m512i numbers[kLanes];
    for (int i = 0; i < kLanes; ++i) numbers[i] = row(0, first + i);
    transpose(numbers);
    for (int i = 0; i < kLanes; ++i) _mm512_store_si512(queries.numbers + i * kPanel, numbers[i]);
    std::memset(queries.mixed, 0, sizeof queries.mixed);
    _mm512_store_ps(queries.largest, _mm512_set1_ps(-std::numeric_limits<float>::infinity()));
    _mm512_store_ps(queries.total, _mm512_setzero_ps());
  }

  Queries& queries_of(std::ptrdiff_t turn) const { return queries_[turn % blocks_]; }
  std::ptrdiff_t first_key(std::ptrdiff_t turn) const { return turn / blocks_ * kPartKeys; }
  std::ptrdiff_t num_keys(std::ptrdiff_t turn) const {
    return std::min<std::ptrdiff_t>(kPartKeys, heads_.tokens - first_key(turn));
  }

  void score(std::ptrdiff_t turn) {
    const Bfloat16* keys = keys_ + first_key(turn) * kHeadWidth;
    float* scores = scores_[turn % 2];
    settle_memory();
    _tile_loadd(3, queries_of(turn).numbers, 64);
    for (std::ptrdiff_t step = 0; step * kPanel < num_keys(turn); ++step, keys += kStepSize, scores += kSums) {
      _tile_zero(0);
      _tile_loadd(1, keys, 64);
      _tile_dpbf16ps(0, 1, 3);
      _tile_zero(2);
      _tile_loadd(1, keys + kStepSize / 2, 64);
      _tile_dpbf16ps(2, 1, 3);
      _tile_stored(0, scores, 64);
      _tile_stored(2, scores + kSums / 2, 64);
    }
    settle_memory();
  }

  // Scores to probabilities times the total so far, in pairs of keys. The largest score so far is the measure of all; in
  // most parts it stays what it was.
  void exponentiate(std::ptrdiff_t turn) {
    Queries& queries = queries_of(turn);
    const float* scores = scores_[turn % 2];
    const __m512 before = _mm512_load_ps(queries.largest);
    const __m512 largest = _mm512_max_ps(before, largest_of(scores, num_keys(turn)));
    if (_mm512_cmp_ps_mask(before, largest, _CMP_NEQ_UQ)) scale_down(queries, before, largest);
    const __m512 total = exponentials(scores, num_keys(turn), largest, probabilities_[turn % 2]);
    _mm512_store_ps(queries.total, _mm512_add_ps(_mm512_load_ps(queries.total), total));
  }

  // NaN may be lost here; its exponential is NaN, in its own column.
  static __m512 largest_of(const float* scores, std::ptrdiff_t count) {
    __m512 most[4];
    for (auto& one : most) one = _mm512_load_ps(scores);
    std::ptrdiff_t key = 0;
    for (; key + 4 <= count; key += 4) {
      UNROLLED
      for (int i = 0; i < 4; ++i) most[i] = _mm512_max_ps(most[i], _mm512_load_ps(scores + (key + i) * kLanes));
    }
    for (; key < count; ++key) most[0] = _mm512_max_ps(most[0], _mm512_load_ps(scores + key * kLanes));
    return _mm512_max_ps(_mm512_max_ps(most[0], most[1]), _mm512_max_ps(most[2], most[3]));
  }

  static void scale_down(Queries& queries, __m512 before, __m512 largest) {
    const __m512 factor = exp2(_mm512_mul_ps(_mm512_sub_ps(before, largest), _mm512_set1_ps(kLog2E)));
    _mm512_store_ps(queries.largest, largest);
    _mm512_store_ps(queries.total, _mm512_mul_ps(_mm512_load_ps(queries.total), factor));
    for (float* row = queries.mixed; row < queries.mixed + kHeadWidth * kLanes; row += kLanes)
      _mm512_store_ps(row, _mm512_mul_ps(_mm512_load_ps(row), factor));
  }

  // Their sum is returned. Keys that are missing to a step of 32 get zeros.
  static __m512 exponentials(const float* scores, std::ptrdiff_t count, __m512 largest, Bfloat16* to) {
    const __m512 unit = _mm512_set1_ps(kLog2E), offset = _mm512_mul_ps(largest, unit);
    const auto probability = [&](std::ptrdiff_t key) {
      return exp2(_mm512_fmsub_ps(_mm512_load_ps(scores + key * kLanes), unit, offset));
    };
    const Interleaved interleaved;
    __m512 even_total = _mm512_setzero_ps(), odd_total = _mm512_setzero_ps();
    std::ptrdiff_t key = 0;
    for (; key + 2 <= count; key += 2) {
      const __m512 even = probability(key), odd = probability(key + 1);
      even_total = _mm512_add_ps(even_total, even);
      odd_total = _mm512_add_ps(odd_total, odd);
      _mm512_store_si512(to + key * kLanes, interleaved(even, odd));
    }
    for (; key < count || key % kPanel; key += 2) {
      const __m512 even = key < count ? probability(key) : _mm512_setzero_ps();
      even_total = _mm512_add_ps(even_total, even);
      _mm512_store_si512(to + key * kLanes, interleaved(even, _mm512_setzero_ps()));
    }
    return _mm512_add_ps(even_total, odd_total);
  }

  void add_values(std::ptrdiff_t turn) {
    Queries& queries = queries_of(turn);
    const Bfloat16 *probabilities = probabilities_[turn % 2], *values = values_ + first_key(turn) * kHeadWidth;
    settle_memory();
    _tile_loadd(0, queries.mixed, 64);
    _tile_loadd(2, queries.mixed + kTileRows * kLanes, 64);
    for (std::ptrdiff_t step = 0; step * kPanel < num_keys(turn); ++step) {
      _tile_loadd(3, probabilities + step * kPanel * kLanes, 64);
      _tile_loadd(1, values + step * kStepSize, 64);
      _tile_dpbf16ps(0, 1, 3);
      _tile_loadd(1, values + step * kStepSize + kStepSize / 2, 64);
      _tile_dpbf16ps(2, 1, 3);
    }
    _tile_stored(0, queries.mixed, 64);
    _tile_stored(2, queries.mixed + kTileRows * kLanes, 64);
    settle_memory();
  }

  void write(const Queries& queries, std::ptrdiff_t first) const {
    const __m512 factor = _mm512_div_ps(_mm512_set1_ps(1.0f), _mm512_load_ps(queries.total));
    __m512i low[kLanes], high[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      low[i] = _mm512_castps_si512(_mm512_mul_ps(_mm512_load_ps(queries.mixed + i * kLanes), factor));
      high[i] = _mm512_castps_si512(_mm512_mul_ps(_mm512_load_ps(queries.mixed + (i + kLanes) * kLanes), factor));
    }
    transpose(low);
    transpose(high);
    const std::ptrdiff_t count = std::min<std::ptrdiff_t>(kTileRows, heads_.tokens - first);
    for (std::ptrdiff_t i = 0; i < count; ++i)
      _mm512_storeu_si512(heads_.output + ((first + i) * heads_.heads + head_) * kHeadWidth,
                          rounded(_mm512_castsi512_ps(low[i]), _mm512_castsi512_ps(high[i])));
  }

  const Heads& heads_;
  const std::ptrdiff_t head_, steps_, blocks_;
  Bfloat16 *const keys_, *const values_;
  Queries* const queries_;
  alignas(64) float scores_[2][kPartKeys * kLanes];
  alignas(64) Bfloat16 probabilities_[2][kPartKeys * kLanes];
};

} // namespace fastvlm::FASTVLM_LEVEL::encoder
