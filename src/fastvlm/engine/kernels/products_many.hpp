// Products of many rows: weights as left operands, rows as right ones, packed once for all outputs.

#pragma once

#include "exponential.hpp"
#include "products.hpp"
#include "products_unpacked.hpp"
#include "team.hpp"

namespace fastvlm {

constexpr std::ptrdiff_t kMaxRows = 512;   // at a time: packed, they should stay in the second cache
constexpr std::ptrdiff_t kDepth = 1024;    // inputs at a time, at most
constexpr std::ptrdiff_t kTileInputs = 32; // bfloat16 numbers in a row of a tile
constexpr std::ptrdiff_t kSums = 4 * kTileRows * kTileRows;

// Rows as right operands of tile products: for each 16 rows `steps` tiles of 32 inputs.
struct Columns {
  std::uint8_t* tiles;
  std::ptrdiff_t num_rows, steps;

  Columns(Scratch<std::uint8_t>& memory, std::ptrdiff_t num_rows, std::ptrdiff_t inputs)
      : num_rows(num_rows), steps((inputs + kTileInputs - 1) / kTileInputs) {
    tiles = memory.at_least(num_tiles() * steps * kTileBytes);
  }
  std::ptrdiff_t num_tiles() const { return (num_rows + kTileRows - 1) / kTileRows; }
  const std::uint8_t* tile(std::ptrdiff_t index, std::ptrdiff_t step) const {
    return tiles + (index * steps + step) * kTileBytes;
  }

  // fill(row, numbers) puts a row of padded_inputs(inputs) bfloat16 numbers.
  template <typename Fill>
  void pack(const Member& member, const Fill& fill) const {
    static thread_local Scratch<Bfloat16> memory;
    const std::ptrdiff_t width = padded_inputs(steps * kTileInputs);
    Bfloat16* rows = memory.at_least(kTileRows * width);
    for (std::ptrdiff_t tile = member.index; tile < num_tiles(); tile = member.claim()) {
      const auto count = static_cast<int>(std::min<std::ptrdiff_t>(kTileRows, num_rows - tile * kTileRows));
      for (int i = 0; i < count; ++i) fill(tile * kTileRows + i, rows + i * width);
      pack_columns(reinterpret_cast<const std::uint32_t*>(rows), width / 2, count, steps * kTileInputs / 2,
                   tiles + tile * steps * kTileBytes);
    }
    settle_memory();
  }
};

// Tiles 0 to 3 += two times 16 outputs times two times 16 rows over `steps` times 32 inputs.
inline void multiply_four(const std::uint8_t* weights, const std::uint8_t* others, std::ptrdiff_t stride,
                          const std::uint8_t* columns, const std::uint8_t* more_columns, std::ptrdiff_t steps) {
  for (std::ptrdiff_t step = 0; step < steps; ++step) {
    _tile_stream_loadd(4, weights + step * kTileRowBytes, stride);
    _tile_loadd(6, columns + step * kTileBytes, kTileRowBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, more_columns + step * kTileBytes, kTileRowBytes);
    _tile_dpbf16ps(1, 4, 7);
    _tile_stream_loadd(5, others + step * kTileRowBytes, stride);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

inline void begin_sums(const float* sums, bool is_first) {
  if (is_first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    return;
  }
  _tile_loadd(0, sums, kTileRowBytes);
  _tile_loadd(1, sums + 256, kTileRowBytes);
  _tile_loadd(2, sums + 512, kTileRowBytes);
  _tile_loadd(3, sums + 768, kTileRowBytes);
}

inline void end_sums(float* sums) {
  _tile_stored(0, sums, kTileRowBytes);
  _tile_stored(1, sums + 256, kTileRowBytes);
  _tile_stored(2, sums + 512, kTileRowBytes);
  _tile_stored(3, sums + 768, kTileRowBytes);
  settle_memory();
}

class ManyRowsProduct {
 public:
  // `is_gated`: the first half of the outputs are gates of the second half, silu(gate) * other is what is put out.
  ManyRowsProduct(const Product& product, const Columns& columns, const Output& output, bool is_gated = false)
      : product_(product), columns_(columns), output_(output), is_gated_(is_gated) {}

  void work(const Member& member) const {
    const std::ptrdiff_t pieces = num_pieces(product_, kUnpacked);
    const std::ptrdiff_t count = is_gated_ ? (product_.outputs / 2 + kUnpacked - 1) / kUnpacked : (pieces + 1) / 2;
    for (std::ptrdiff_t i = member.index; i < count; i = member.claim()) {
      if (is_gated_) {
        const Piece gates = gate(i);
        multiply(gates, gated_by(gates));
      } else {
        multiply(piece(product_, kUnpacked, 2 * i), piece(product_, kUnpacked, 2 * i + 1));
      }
    }
  }

 private:
  Piece gate(std::ptrdiff_t index) const {
    const std::ptrdiff_t first = index * kUnpacked;
    return {product_.parts, first, std::min(kUnpacked, product_.outputs / 2 - first), first};
  }
  // In a matrix of its own, or in the second half of the same.
  Piece gated_by(Piece gates) const {
    if (product_.num_parts == 2) {
      gates.matrix = product_.parts + 1;
    } else {
      gates.first += product_.outputs / 2;
    }
    return gates;
  }

  bool is_direct(const Piece& piece) const {
    return product_.kind() == kBfloat16 && piece.count == kUnpacked && product_.inputs % kTileInputs == 0;
  }

  // Two pieces, of which the second may be empty.
  void multiply(const Piece& piece, const Piece& other) const {
    static thread_local Scratch<float> sums;
    static thread_local Scratch<Bfloat16> unpacked;
    const std::ptrdiff_t parts = (columns_.steps * kTileInputs + kDepth - 1) / kDepth;
    const std::ptrdiff_t depth = rounded_up((columns_.steps + parts - 1) / parts, 2); // whole 64 inputs, for `unpack`
    const bool are_direct = is_direct(piece) && (is_direct(other) || !other.matrix);
    // Rows that are a power of two apart would share a set of the first cache.
    const std::ptrdiff_t stride = are_direct ? product_.inputs : depth * kTileInputs + kTileInputs;
    Bfloat16* rows = are_direct ? nullptr : unpacked.at_least(2 * kUnpacked * stride);
    float* all = sums.at_least((columns_.num_tiles() + 1) / 2 * 2 * kSums);
    for (std::ptrdiff_t step = 0; step < columns_.steps; step += depth) {
      const std::ptrdiff_t stop = std::min(step + depth, columns_.steps);
      const std::uint8_t* weights = ready(piece, step, stop, rows, stride);
      const std::uint8_t* others = weights;
      if (other.matrix) others = ready(other, step, stop, are_direct ? nullptr : rows + kUnpacked * stride, stride);
      settle_memory();
      multiply_part(piece, other, weights, others, stride * 2, step, stop, all);
    }
  }

  // The weights of a piece, where they lie or unpacked into `rows`.
  const std::uint8_t* ready(const Piece& piece, std::ptrdiff_t step, std::ptrdiff_t stop, Bfloat16* rows,
                            std::ptrdiff_t stride) const {
    const std::ptrdiff_t start = step * kTileInputs;
    if (!rows) return piece.matrix->values + (piece.first * product_.inputs + start) * 2;
    unpack(product_, piece, start, start + padded_inputs((stop - step) * kTileInputs), rows, stride);
    return reinterpret_cast<const std::uint8_t*>(rows);
  }

  void multiply_part(const Piece& piece, const Piece& other, const std::uint8_t* weights, const std::uint8_t* others,
                     std::ptrdiff_t stride, std::ptrdiff_t step, std::ptrdiff_t stop, float* sums) const {
    for (std::ptrdiff_t tile = 0; tile < columns_.num_tiles(); tile += 2) {
      const std::uint8_t* more_columns = columns_.tile(std::min(tile + 1, columns_.num_tiles() - 1), step);
      for (std::ptrdiff_t first = 0; first < std::max(piece.count, other.count); first += kTileRows, sums += kSums) {
        begin_sums(sums, step == 0);
        const std::ptrdiff_t at = first * stride;
        multiply_four(weights + at, others + at, stride, columns_.tile(tile, step), more_columns, stop - step);
        end_sums(sums);
        if (stop == columns_.steps) finish(piece, other, first, tile * kTileRows, sums);
      }
    }
  }

  void finish(const Piece& piece, const Piece& other, std::ptrdiff_t first, std::ptrdiff_t row,
              const float* sums) const {
    for (int i = 0; i < 2 && row < columns_.num_rows; ++i, row += kTileRows, sums += 256) {
      __m512 results[kTileRows], others[kTileRows];
      const auto count = static_cast<int>(std::min<std::ptrdiff_t>(kTileRows, columns_.num_rows - row));
      if (first < piece.count) finish_tile(piece, first, sums, results);
      if (first < other.count) finish_tile(other, first, sums + 512, others);
      if (is_gated_) {
        for (int j = 0; j < count; ++j) results[j] = _mm512_mul_ps(silu(results[j]), others[j]);
      }
      if (first < piece.count) put(piece, first, row, count, results);
      if (first < other.count && !is_gated_) put(other, first, row, count, others);
    }
  }

  void put(const Piece& piece, std::ptrdiff_t first, std::ptrdiff_t row, int count,
           const __m512 results[kTileRows]) const {
    const __mmask16 mask = first_floats(piece.count - first);
    for (int i = 0; i < count; ++i) output_.put(row + i, piece.column + first, results[i], mask);
  }

  static void finish_tile(const Piece& piece, std::ptrdiff_t first, const float* sums, __m512 results[kTileRows]) {
    const __mmask16 mask = first_floats(piece.count - first);
    __m512i lanes[kTileRows];
    for (int i = 0; i < kTileRows; ++i) lanes[i] = _mm512_loadu_si512(sums + i * kTileRows);
    transpose(lanes);
    for (int i = 0; i < kTileRows; ++i)
      results[i] = finished(*piece.matrix, piece.first + first, mask, _mm512_castsi512_ps(lanes[i]));
  }

  const Product& product_;
  const Columns& columns_;
  const Output output_;
  const bool is_gated_;
};

} // namespace fastvlm
