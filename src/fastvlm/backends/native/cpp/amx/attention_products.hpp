// Products of the decoder's attention with tile registers: keys are left operands, as weights are elsewhere.

#pragma once

#include <algorithm>
#include <cstddef>

#include "../scratch.hpp"
#include "simd.hpp"
#include "tiles.hpp"

namespace fastvlm::FASTVLM_LEVEL {

constexpr int kScoreColumns = kTileRows; // queries that go over the same keys together

// scores (seen, 16) = keys (seen, width) times `count` queries (count, width). Tiles of keys may reach beyond the last
// token, into other heads or values.
inline void score_keys(const Bfloat16* keys, std::ptrdiff_t seen, std::ptrdiff_t width, const float* queries,
                       std::ptrdiff_t count, float* scores) {
  static thread_local Scratch<Bfloat16> halves;
  static thread_local Scratch<std::uint8_t> packed;
  Bfloat16* narrow = halves.at_least(count * width);
  for (std::ptrdiff_t i = 0; i < count * width; i += kLanes) store(narrow + i, load(queries + i));
  std::uint8_t* columns = packed.at_least(width / kBlock * kTileBytes);
  pack_columns(reinterpret_cast<const std::uint32_t*>(narrow), width / 2, static_cast<int>(count), width / 2, columns);
  settle_memory();
  for (std::ptrdiff_t key = 0; key < seen; key += kTileRows) {
    _tile_zero(0);
    for (std::ptrdiff_t i = 0; i < width / kBlock; ++i) {
      _tile_loadd(2, keys + key * width + i * kBlock, width * sizeof(Bfloat16));
      _tile_loadd(3, columns + i * kTileBytes, kTileRowBytes);
      _tile_dpbf16ps(0, 2, 3);
    }
    _tile_stored(0, scores + key * kScoreColumns, kTileRowBytes);
  }
  settle_memory();
}

// 32 columns of the values, added up with 8 columns of weights; asks for as much of what lies ahead.
inline void mix_block(const float* weights, std::ptrdiff_t seen, const Bfloat16* values, std::ptrdiff_t width,
                      const Bfloat16* ahead, const Bfloat16* more_ahead, float (*results)[kBlock]) {
  constexpr int kColumns = 8;
  __m512 even[kColumns], odd[kColumns];
  UNROLLED
  for (int i = 0; i < kColumns; ++i) even[i] = odd[i] = _mm512_setzero_ps();
  for (std::ptrdiff_t token = 0; token < seen; ++token, weights += kScoreColumns, values += width) {
    __builtin_prefetch(ahead + token * width, 0, 2);
    __builtin_prefetch(more_ahead + token * width, 0, 2);
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

// results (16, width) = the first `count` columns of weights (seen, 16) times values (seen, width); `ahead` and
// `more_ahead` are as long, and asked for.
inline void mix_values(const float* weights, std::ptrdiff_t count, std::ptrdiff_t seen, const Bfloat16* values,
                       std::ptrdiff_t width, const Bfloat16* ahead, const Bfloat16* more_ahead, float* results) {
  for (std::ptrdiff_t first = 0; first < count; first += 8)
    for (std::ptrdiff_t at = 0; at < width; at += kBlock) {
      float block[8][kBlock];
      mix_block(weights + first, seen, values + at, width, ahead + at, more_ahead + at, block);
      for (std::ptrdiff_t i = 0; i < std::min<std::ptrdiff_t>(8, count - first); ++i)
        std::copy_n(block[i], kBlock, results + (first + i) * width + at);
    }
}

} // namespace fastvlm::FASTVLM_LEVEL
