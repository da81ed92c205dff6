// Converts rounded weights to bfloat16: 8 bits without their scale (exact), 4 bits with scale and zero.

#pragma once

#include "../linear_weights.hpp"
#include "../nibbles.hpp"

namespace fastvlm::FASTVLM_LEVEL {

// 32 values 0..15 of one output and one group, as bfloat16.
inline __m512i looked_up(__m256i values, std::uint32_t scale_and_zero) {
  const __m512 steps = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
  const __m512i both = _mm512_set1_epi32(static_cast<int>(scale_and_zero));
  const __m512i table = _mm512_castsi256_si512(detail::rounded_to_bfloat16(_mm512_fmadd_ps(steps, even_lanes(both), odd_lanes(both))));
  return _mm512_permutexvar_epi16(_mm512_cvtepu8_epi16(values), table);
}

// Inputs `start` to `stop` of 32 outputs from `first` on, as rows of `stride` numbers; `start` is a multiple of 64,
// `first` of 32, and what is missing of 64 inputs is anything finite.
inline void unpack_int4(const Matrix& matrix, std::ptrdiff_t inputs, std::ptrdiff_t first, std::ptrdiff_t start,
                        std::ptrdiff_t stop, Bfloat16* rows, std::ptrdiff_t stride) {
  const Nibbles nibbles;
  const bool is_high = first % kOutputs != 0;
  const std::uint8_t* block = matrix.values + first / kOutputs * kOutputs * inputs / 2;
  for (std::ptrdiff_t input = start; input < stop; input += 64) {
    __m512i values[2][kTileRows] = {};
    for (int quad = 0; quad < kTileRows && input + quad * 4 < inputs; ++quad) {
      __m512i left, right;
      nibbles.pair(block + (input + quad * 4) * 32, left, right);
      values[0][quad] = is_high ? high_halves(left) : low_halves(left);
      values[1][quad] = is_high ? high_halves(right) : low_halves(right);
    }
    const std::uint32_t* left = scales_and_zeros(matrix, std::min(input, inputs - 1), first);
    const std::uint32_t* right = scales_and_zeros(matrix, std::min(input + 32, inputs - 1), first);
    for (int i = 0; i < 2; ++i) {
      transpose(values[i]);
      Bfloat16* row = rows + i * kTileRows * stride + input - start;
      for (int j = 0; j < kTileRows; ++j, row += stride) {
        const int output = i * kTileRows + j;
        _mm512_storeu_si512(row, looked_up(_mm512_castsi512_si256(values[i][j]), left[output]));
        _mm512_storeu_si512(row + 32, looked_up(_mm512_extracti64x4_epi64(values[i][j], 1), right[output]));
      }
    }
  }
}

// 32 numbers of 8 bits as bfloat16, exactly.
inline __m512i widened_int8(__m256i values) {
  const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(values)));
  const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256(values, 1)));
  const __m512bh halves = _mm512_cvtne2ps_pbh(high, low);
  __m512i bits;
  std::memcpy(&bits, &halves, sizeof bits);
  return bits;
}

// As unpack_int4, of `count` outputs that are in rows; what is missing of 64 inputs is zero.
inline void unpack_rows(const Matrix& matrix, std::ptrdiff_t inputs, const Piece& piece, std::ptrdiff_t start,
                        std::ptrdiff_t stop, Bfloat16* rows, std::ptrdiff_t stride) {
  for (std::ptrdiff_t i = 0; i < piece.count; ++i, rows += stride) {
    const std::ptrdiff_t row = (piece.first + i) * inputs;
    for (std::ptrdiff_t input = start; input < stop; input += kBlock) {
      const __mmask32 mask = input < inputs ? first_lanes(static_cast<std::size_t>(inputs - input)) : 0;
      const std::ptrdiff_t at = row + input;
      const __m512i values =
          matrix.kind == kInt8
              ? widened_int8(_mm256_maskz_loadu_epi8(mask, matrix.values + at))
              : _mm512_maskz_loadu_epi16(mask, reinterpret_cast<const Bfloat16*>(matrix.values) + at);
      _mm512_storeu_si512(rows + input - start, values);
    }
  }
}

constexpr std::ptrdiff_t kUnpacked = 2 * kTileRows; // outputs that are unpacked at a time

// A piece of at most 32 outputs, inputs `start` to `stop`, as 32 bfloat16 rows of `stride` numbers; those beyond the
// piece are finite.
inline void unpack(const LinearWeights& linear, const Piece& piece, std::ptrdiff_t start, std::ptrdiff_t stop,
                   Bfloat16* rows, std::ptrdiff_t stride) {
  if (piece.matrix->kind == kInt4) {
    unpack_int4(*piece.matrix, linear.inputs, piece.first, start, stop, rows, stride);
    return;
  }
  unpack_rows(*piece.matrix, linear.inputs, piece, start, stop, rows, stride);
  for (std::ptrdiff_t i = piece.count; i < kUnpacked; ++i)
    std::memset(rows + i * stride, 0, static_cast<std::size_t>(stop - start) * sizeof(Bfloat16));
}

} // namespace fastvlm::FASTVLM_LEVEL
