// Products of many rows: weights as left operands, rows as right ones, packed once for all outputs.

#pragma once

#include "products.hpp"
#include "products_unpacked.hpp"
#include "team.hpp"

namespace fastvlm {

constexpr std::ptrdiff_t kMaxRows = 512;    // at a time: packed, they should stay in the second cache
constexpr std::ptrdiff_t kDepth = 1024;     // inputs at a time, at most
constexpr std::ptrdiff_t kTileInputs = 32;  // bfloat16 numbers in a row of a tile

// Tiles 0 to 3 += weights (2 tiles of 16 outputs) times columns (2 tiles of 16 rows) over `steps` times 32 inputs.
inline void multiply_four(const std::uint8_t* weights, std::ptrdiff_t stride, const std::uint8_t* columns,
                          const std::uint8_t* more_columns, std::ptrdiff_t steps) {
  const std::uint8_t* more_weights = weights + kTileRows * stride;
  for (std::ptrdiff_t step = 0; step < steps; ++step) {
    _tile_loadd(4, weights + step * kTileRowBytes, stride);
    _tile_loadd(6, columns + step * kTileBytes, kTileRowBytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, more_columns + step * kTileBytes, kTileRowBytes);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, more_weights + step * kTileRowBytes, stride);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

inline void load_sums(const float* sums) {
  _tile_loadd(0, sums, kTileRowBytes);
  _tile_loadd(1, sums + 256, kTileRowBytes);
  _tile_loadd(2, sums + 512, kTileRowBytes);
  _tile_loadd(3, sums + 768, kTileRowBytes);
}

inline void store_sums(float* sums) {
  _tile_stored(0, sums, kTileRowBytes);
  _tile_stored(1, sums + 256, kTileRowBytes);
  _tile_stored(2, sums + 512, kTileRowBytes);
  _tile_stored(3, sums + 768, kTileRowBytes);
  settle_memory();
}

inline void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

class ManyRows {
 public:
  // `rows` (num_rows, inputs) bfloat16, `stride` numbers apart.
  ManyRows(const Product& product, const Bfloat16* rows, std::ptrdiff_t stride, std::ptrdiff_t num_rows,
           const Output& output)
      : product_(product),
        rows_(rows),
        stride_(stride),
        num_rows_(num_rows),
        steps_((product.inputs + kTileInputs - 1) / kTileInputs),
        num_tiles_((num_rows + kTileRows - 1) / kTileRows),
        output_(output) {
    static thread_local Scratch<std::uint8_t> columns;
    columns_ = columns.at_least(num_tiles_ * steps_ * kTileBytes);
  }

  void work(const Member& member) {
    for (std::ptrdiff_t tile = member.index; tile < num_tiles_; tile = member.claim()) pack(tile);
    member.meet();
    settle_memory();
    const WholeTiles tiles;
    const std::ptrdiff_t count = num_pieces(product_, kOutputs);
    for (std::ptrdiff_t i = member.index; i < count; i = member.claim()) multiply(piece(product_, kOutputs, i));
    member.meet();
  }

 private:
  void pack(std::ptrdiff_t tile) {
    const Bfloat16* first = rows_ + tile * kTileRows * stride_;
    const int count = static_cast<int>(std::min<std::ptrdiff_t>(kTileRows, num_rows_ - tile * kTileRows));
    std::uint8_t* columns = columns_ + tile * steps_ * kTileBytes;
    if (product_.inputs % kTileInputs == 0 && stride_ % 2 == 0) {
      pack_columns(reinterpret_cast<const std::uint32_t*>(first), stride_ / 2, count, product_.inputs / 2, columns);
      return;
    }
    static thread_local Scratch<Bfloat16> padded;
    const std::ptrdiff_t width = steps_ * kTileInputs;
    Bfloat16* whole = padded.at_least(kTileRows * width);
    for (int i = 0; i < count; ++i) {
      std::memcpy(whole + i * width, first + i * stride_, static_cast<std::size_t>(product_.inputs) * sizeof(Bfloat16));
      std::fill(whole + i * width + product_.inputs, whole + (i + 1) * width, Bfloat16{0});
    }
    pack_columns(reinterpret_cast<const std::uint32_t*>(whole), width / 2, count, width / 2, columns);
  }

  void multiply(const Piece& piece) {
    static thread_local Scratch<float> sums;
    static thread_local Scratch<Bfloat16> unpacked;
    const std::ptrdiff_t parts = (steps_ * kTileInputs + kDepth - 1) / kDepth;
    const std::ptrdiff_t depth = rounded_up((steps_ + parts - 1) / parts, 2); // whole 64 inputs, as `unpack` wants
    const bool is_direct = product_.kind() == kBfloat16 && piece.count == kOutputs && product_.inputs % kTileInputs == 0;
    float* all_sums = sums.at_least((num_tiles_ + 1) / 2 * 2 * 1024);
    for (std::ptrdiff_t step = 0; step < steps_; step += depth) {
      const std::ptrdiff_t stop = std::min(step + depth, steps_), width = padded_inputs((stop - step) * kTileInputs);
      const std::uint8_t* weights = piece.matrix->values + (piece.first * product_.inputs + step * kTileInputs) * 2;
      std::ptrdiff_t stride = product_.inputs;
      if (!is_direct) {
        stride = width + kTileInputs; // rows that are a power of two apart would share a set of the first cache
        Bfloat16* rows = unpacked.at_least(kOutputs * stride);
        unpack(product_, piece, step * kTileInputs, step * kTileInputs + width, rows, stride);
        settle_memory();
        weights = reinterpret_cast<const std::uint8_t*>(rows);
      }
      multiply_part(piece, weights, stride * 2, step, stop, all_sums);
    }
  }

  void multiply_part(const Piece& piece, const std::uint8_t* weights, std::ptrdiff_t stride, std::ptrdiff_t step,
                     std::ptrdiff_t stop, float* sums) {
    for (std::ptrdiff_t tile = 0; tile < num_tiles_; tile += 2) {
      const std::uint8_t* columns = columns_ + (tile * steps_ + step) * kTileBytes;
      const std::uint8_t* more_columns = columns + (tile + 1 < num_tiles_ ? steps_ * kTileBytes : 0);
      for (std::ptrdiff_t first = 0; first < piece.count; first += 2 * kTileRows, sums += 1024) {
        if (step) {
          load_sums(sums);
        } else {
          zero_sums();
        }
        multiply_four(weights + first * stride, stride, columns, more_columns, stop - step);
        store_sums(sums);
        if (stop == steps_) finish(piece, first, tile, sums);
      }
    }
  }

  // The sums of 32 outputs and 32 rows.
  void finish(const Piece& piece, std::ptrdiff_t first, std::ptrdiff_t tile, const float* sums) const {
    for (int i = 0; i < 4; ++i, sums += 256) {
      const std::ptrdiff_t output = first + i / 2 * kTileRows, row = (tile + i % 2) * kTileRows;
      if (output >= piece.count || row >= num_rows_) continue;
      const __mmask16 mask = first_floats(piece.count - output);
      __m512i lanes[kTileRows];
      for (int j = 0; j < kTileRows; ++j) lanes[j] = _mm512_loadu_si512(sums + j * kTileRows);
      transpose(lanes);
      const int count = static_cast<int>(std::min<std::ptrdiff_t>(kTileRows, num_rows_ - row));
      for (int j = 0; j < count; ++j)
        output_.put(row + j, piece.column + output,
                    finished(*piece.matrix, piece.first + output, mask, _mm512_castsi512_ps(lanes[j])), mask);
    }
  }

  const Product& product_;
  const Bfloat16* rows_;
  const std::ptrdiff_t stride_, num_rows_, steps_, num_tiles_;
  const Output output_;
  std::uint8_t* columns_;
};

} // namespace fastvlm
