// GEMM for many rows: weights are the left operands; rows are the right ones, packed once for all outputs.

#pragma once

#include "../exponential.hpp"
#include "../linear_weights.hpp"
#include "gemm_unpacked.hpp"
#include "../team.hpp"

namespace fastvlm::FASTVLM_LEVEL {

constexpr std::ptrdiff_t kMaxRows = 512;   // at a time: packed, they should stay in the second cache
constexpr std::ptrdiff_t kDepth = 1024;    // inputs at a time, at most
constexpr std::ptrdiff_t kTileInputs = 32; // bfloat16 numbers in a row of a tile
constexpr std::ptrdiff_t kGroup = 8;       // pairs of pieces, at most, that go through a part of the inputs together
constexpr std::ptrdiff_t kNearSteps = 12;  // times 32 inputs of 32 outputs: their weights stay in the first cache
constexpr std::ptrdiff_t kSums = 2 * kTileRows * kTileRows;

// Rows as right operands of tile products: for each 16 rows `steps` tiles of 32 inputs.
struct Columns {
  std::uint8_t* tiles;
  std::ptrdiff_t num_rows, steps;

  Columns(Scratch<std::uint8_t>& memory, const LinearWeights& linear, std::ptrdiff_t num_rows, bool)
      : num_rows(num_rows), steps(parts(linear.inputs, kTileInputs)) {
    tiles = memory.at_least(num_bytes(num_rows, linear.inputs));
  }
  // What the memory must hold.
  static std::ptrdiff_t num_bytes(std::ptrdiff_t num_rows, std::ptrdiff_t inputs) {
    return parts(num_rows, kTileRows) * parts(inputs, kTileInputs) * kTileBytes;
  }
  std::ptrdiff_t num_tiles() const { return (num_rows + kTileRows - 1) / kTileRows; }
  const std::uint8_t* tile(std::ptrdiff_t index, std::ptrdiff_t step) const {
    return tiles + (index * steps + step) * kTileBytes;
  }

  // fill(row, numbers) puts a row of padded_inputs(inputs) float32 numbers.
  template <typename Fill>
  void pack(const TeamMember& member, const Fill& fill) const {
    static thread_local Scratch<Bfloat16> memory;
    static thread_local Scratch<float> wide_memory;
    const std::ptrdiff_t width = padded_inputs(steps * kTileInputs);
    Bfloat16* rows = memory.at_least(kTileRows * width);
    float* wide = wide_memory.at_least(width);
    for (std::ptrdiff_t tile = member.index; tile < num_tiles(); tile = member.claim()) {
      const auto count = static_cast<int>(std::min<std::ptrdiff_t>(kTileRows, num_rows - tile * kTileRows));
      for (int i = 0; i < count; ++i) {
        fill(tile * kTileRows + i, wide);
        for (std::ptrdiff_t j = 0; j < width; j += kLanes) store(rows + i * width + j, load(wide + j));
      }
      pack_columns(reinterpret_cast<const std::uint32_t*>(rows), width / 2, count, steps * kTileInputs / 2,
                   tiles + tile * steps * kTileBytes);
    }
    settle_memory();
  }
};

// Two sums of 16 x 16: 16 outputs of either weights times 16 rows over `steps` times 32 inputs, added to what is there.
// Four of the eight tiles, for the reason told in blocks.hpp.
inline void multiply_two(const std::uint8_t* weights, const std::uint8_t* others, std::ptrdiff_t stride,
                         const std::uint8_t* columns, std::ptrdiff_t steps, float* sums, bool is_first, Ahead& ahead,
                         std::ptrdiff_t lines) {
  if (is_first) {
    _tile_zero(0);
    _tile_zero(2);
  } else {
    _tile_loadd(0, sums, kTileRowBytes);
    _tile_loadd(2, sums + kSums / 2, kTileRowBytes);
  }
  for (std::ptrdiff_t step = 0; step < steps; ++step) {
    ahead.fetch(lines);
    _tile_loadd(3, columns + step * kTileBytes, kTileRowBytes);
    _tile_loadd(1, weights + step * kTileRowBytes, stride);
    _tile_dpbf16ps(0, 1, 3);
    _tile_loadd(1, others + step * kTileRowBytes, stride);
    _tile_dpbf16ps(2, 1, 3);
  }
  _tile_stored(0, sums, kTileRowBytes);
  _tile_stored(2, sums + kSums / 2, kTileRowBytes);
  settle_memory();
}

class Gemm {
 public:
  // `is_gated`: the first half of the outputs are gates of the second half, silu(gate) * other is what is put out.
  Gemm(const LinearWeights& linear, const Columns& columns, const Output& output, bool is_gated = false)
      : linear_(linear), columns_(columns), output_(output), is_gated_(is_gated) {}

  void work(const TeamMember& member) const {
    const std::ptrdiff_t pieces = num_pieces(linear_, kUnpacked);
    const std::ptrdiff_t count = is_gated_ ? (linear_.outputs / 2 + kUnpacked - 1) / kUnpacked : (pieces + 1) / 2;
    if (columns_.steps * kTileInputs <= kDepth) {
      for (std::ptrdiff_t index = member.index; index < count;) {
        const std::ptrdiff_t next = member.claim();
        multiply(index, index + 1, next < count ? pair(next) : Pair{});
        index = next;
      }
      return;
    }
    // Inputs come in parts, and a part of the columns is to be used often while it is in the second cache.
    const std::ptrdiff_t rounds = (count + member.size * kGroup - 1) / (member.size * kGroup);
    const std::ptrdiff_t group = (count + member.size * rounds - 1) / (member.size * rounds);
    for (std::ptrdiff_t i = member.index; i * group < count; i = member.claim())
      multiply(i * group, std::min((i + 1) * group, count), Pair{});
  }

 private:
  // What is multiplied together: gates and what they let through, or any two pieces, of which one may be missing.
  struct Pair {
    Piece piece, other;
  };

  Pair pair(std::ptrdiff_t index) const {
    if (!is_gated_) return {piece(linear_, kUnpacked, 2 * index), piece(linear_, kUnpacked, 2 * index + 1)};
    const Piece gates = gate(index);
    return {gates, gated_by(gates)};
  }
  Piece gate(std::ptrdiff_t index) const {
    const std::ptrdiff_t first = index * kUnpacked;
    return {linear_.parts, first, std::min(kUnpacked, linear_.outputs / 2 - first), first};
  }
  // In a matrix of its own, or in the second half of the same.
  Piece gated_by(Piece gates) const {
    if (linear_.num_parts == 2) {
      gates.matrix = linear_.parts + 1;
    } else {
      gates.first += linear_.outputs / 2;
    }
    return gates;
  }

  bool is_direct(const Piece& piece) const {
    return linear_.kind() == kBfloat16 && piece.count == kUnpacked && linear_.inputs % kTileInputs == 0;
  }

  // Pairs from `first` to before `last`; asks for the weights of `next`.
  void multiply(std::ptrdiff_t first, std::ptrdiff_t last, const Pair& next) const {
    static thread_local Scratch<float> sums;
    const std::ptrdiff_t parts = (columns_.steps * kTileInputs + kDepth - 1) / kDepth;
    const std::ptrdiff_t depth = rounded_up((columns_.steps + parts - 1) / parts, 2); // whole 64 inputs, for `unpack`
    const std::ptrdiff_t times = columns_.num_tiles(), size = times * 2 * kSums;
    float* all = sums.at_least((last - first) * size);
    Ahead ahead(linear_, next.piece), more_ahead(linear_, next.other);
    const std::ptrdiff_t lines = std::max(ahead.num_lines(), more_ahead.num_lines()) / (times * columns_.steps) + 1;
    for (std::ptrdiff_t step = 0; step < columns_.steps; step += depth)
      for (std::ptrdiff_t i = first; i < last; ++i) {
        const Pair some = pair(i);
        const Part part = ready(some, step, std::min(step + depth, columns_.steps), depth);
        multiply_part(some, part, all + (i - first) * size, ahead, more_ahead, lines);
      }
  }

  // Some inputs of two pieces.
  struct Part {
    const std::uint8_t *weights, *others;
    std::ptrdiff_t stride, step, stop;
  };

  // Weights where they lie, or unpacked.
  Part ready(const Pair& pair, std::ptrdiff_t step, std::ptrdiff_t stop, std::ptrdiff_t depth) const {
    static thread_local Scratch<Bfloat16> unpacked;
    const std::ptrdiff_t start = step * kTileInputs, end = start + padded_inputs((stop - step) * kTileInputs);
    if (is_direct(pair.piece) && (is_direct(pair.other) || !pair.other.matrix)) {
      const auto at = [&](const Piece& piece) { return address(linear_, piece) + start * 2; };
      const std::uint8_t* weights = at(pair.piece);
      return {weights, pair.other.matrix ? at(pair.other) : weights, linear_.inputs * 2, step, stop};
    }
    // Rows that are a power of two apart would share a set of the first cache.
    const std::ptrdiff_t stride = depth * kTileInputs + kTileInputs;
    Bfloat16* rows = unpacked.at_least(2 * kUnpacked * stride);
    Bfloat16* others = pair.other.matrix ? rows + kUnpacked * stride : rows;
    unpack(linear_, pair.piece, start, end, rows, stride);
    if (pair.other.matrix) unpack(linear_, pair.other, start, end, others, stride);
    settle_memory();
    const auto bytes = [](Bfloat16* numbers) { return reinterpret_cast<const std::uint8_t*>(numbers); };
    return {bytes(rows), bytes(others), stride * 2, step, stop};
  }

  // 16 outputs of either piece at a time, and of them as many inputs as stay near while all rows go over them.
  void multiply_part(const Pair& pair, const Part& part, float* sums, Ahead& ahead, Ahead& more_ahead,
                     std::ptrdiff_t lines) const {
    const std::ptrdiff_t count = std::max(pair.piece.count, pair.other.count), steps = part.stop - part.step;
    const std::ptrdiff_t rounds = (steps + kNearSteps - 1) / kNearSteps, near = (steps + rounds - 1) / rounds;
    for (std::ptrdiff_t first = 0; first < count; first += kTileRows, sums += columns_.num_tiles() * kSums)
      for (std::ptrdiff_t step = part.step; step < part.stop; step += near) {
        const std::ptrdiff_t at = first * part.stride + (step - part.step) * kTileRowBytes;
        const std::ptrdiff_t stop = std::min(step + near, part.stop);
        for (std::ptrdiff_t tile = 0; tile < columns_.num_tiles(); ++tile) {
          multiply_two(part.weights + at, part.others + at, part.stride, columns_.tile(tile, step), stop - step,
                       sums + tile * kSums, step == 0, first ? more_ahead : ahead, lines);
          if (stop == columns_.steps) finish(pair, first, tile * kTileRows, sums + tile * kSums);
        }
      }
  }

  void finish(const Pair& pair, std::ptrdiff_t first, std::ptrdiff_t row, const float* sums) const {
    const Piece &piece = pair.piece, &other = pair.other;
    __m512 results[kTileRows], others[kTileRows];
    const auto count = static_cast<int>(std::min<std::ptrdiff_t>(kTileRows, columns_.num_rows - row));
    if (first < piece.count) finish_tile(piece, first, sums, results);
    if (first < other.count) finish_tile(other, first, sums + kSums / 2, others);
    if (is_gated_) {
      for (int j = 0; j < count; ++j) results[j] = _mm512_mul_ps(silu(results[j]), others[j]);
    }
    if (first < piece.count) put(piece, first, row, count, results);
    if (first < other.count && !is_gated_) put(other, first, row, count, others);
  }

  void put(const Piece& piece, std::ptrdiff_t first, std::ptrdiff_t row, int count,
           const __m512 results[kTileRows]) const {
    const std::ptrdiff_t left = piece.count - first;
    for (int i = 0; i < count; ++i) output_.put(row + i, piece.column + first, results[i], left);
  }

  static void finish_tile(const Piece& piece, std::ptrdiff_t first, const float* sums, __m512 results[kTileRows]) {
    const std::ptrdiff_t left = piece.count - first;
    __m512i lanes[kTileRows];
    for (int i = 0; i < kTileRows; ++i) lanes[i] = _mm512_loadu_si512(sums + i * kTileRows);
    transpose(lanes);
    for (int i = 0; i < kTileRows; ++i)
      results[i] = finished(*piece.matrix, piece.first + first, left, _mm512_castsi512_ps(lanes[i]));
  }

  const LinearWeights& linear_;
  const Columns& columns_;
  const Output output_;
  const bool is_gated_;
};

} // namespace fastvlm::FASTVLM_LEVEL
