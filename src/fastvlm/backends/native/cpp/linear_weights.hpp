// Weights of a linear layer as they are stored, their pieces, and the output of a GEMM.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "scratch.hpp"
#include "vectors/vectors.hpp"

namespace fastvlm::FASTVLM_LEVEL {

enum Kind : std::ptrdiff_t { kBfloat16 = 0, kInt8 = 1, kInt4 = 2, kFloat32Weights = 3 };

constexpr std::ptrdiff_t kOutputs = 64; // of a block: how 4-bit weights are packed

// Rows of weights over the same inputs; `NativeMatrix` in native/linear.py.
struct Matrix {
  const std::uint8_t* values; // (outputs, inputs) bfloat16, int8 or float32; 4 bits as formats/rounding.py says
  const void* scales;         // int8: (outputs,) float32; 4 bits: (groups, padded outputs, 2) bfloat16
  const float* bias;          // (outputs,), or null
  std::ptrdiff_t outputs, kind, group;
};

// One or several matrices over the same input, outputs concatenated; all are of one kind. `NativeLinearWeights` in native/linear.py.
struct LinearWeights {
  const Matrix* parts;
  std::ptrdiff_t num_parts, inputs, outputs;
  Kind kind() const { return static_cast<Kind>(parts->kind); }
};

// Rows of inputs are padded with zeros to whole vectors of every number type, and to whole rows of tiles.
inline std::ptrdiff_t padded_inputs(std::ptrdiff_t inputs) { return rounded_up(inputs, 64); }
inline std::ptrdiff_t row_bytes(const LinearWeights& linear) {
  return linear.inputs * (linear.kind() == kInt8 ? 1 : linear.kind() == kFloat32Weights ? 4 : 2);
}

// `size` outputs of one matrix, or fewer at its end.
struct Piece {
  const Matrix* matrix = nullptr;
  std::ptrdiff_t first = 0, count = 0; // outputs of the matrix
  std::ptrdiff_t column = 0;           // of the first of them in the linear
};

inline std::ptrdiff_t num_pieces(const LinearWeights& linear, std::ptrdiff_t size) {
  std::ptrdiff_t count = 0;
  for (std::ptrdiff_t i = 0; i < linear.num_parts; ++i) count += (linear.parts[i].outputs + size - 1) / size;
  return count;
}

inline Piece piece(const LinearWeights& linear, std::ptrdiff_t size, std::ptrdiff_t index) {
  std::ptrdiff_t column = 0;
  for (const Matrix* part = linear.parts; part < linear.parts + linear.num_parts; ++part) {
    const std::ptrdiff_t count = (part->outputs + size - 1) / size;
    if (index < count) {
      const std::ptrdiff_t first = index * size;
      return {part, first, std::min(size, part->outputs - first), column + first};
    }
    index -= count;
    column += part->outputs;
  }
  return {};
}

// Scales and zeros, pairs of bfloat16, of 4-bit weights: of the group of `input`, from output `first` on.
inline const std::uint32_t* scales_and_zeros(const Matrix& matrix, std::ptrdiff_t input, std::ptrdiff_t first) {
  const std::ptrdiff_t padded = rounded_up(matrix.outputs, kOutputs);
  return static_cast<const std::uint32_t*>(matrix.scales) + input / matrix.group * padded + first;
}

// Where the weights of a piece begin, and how long they are; 4-bit weights are in whole blocks.
inline const std::uint8_t* address(const LinearWeights& linear, const Piece& piece) {
  if (linear.kind() != kInt4) return piece.matrix->values + piece.first * row_bytes(linear);
  return piece.matrix->values + piece.first / kOutputs * kOutputs * linear.inputs / 2;
}
inline std::ptrdiff_t num_bytes(const LinearWeights& linear, const Piece& piece) {
  return linear.kind() == kInt4 ? kOutputs * linear.inputs / 2 : piece.count * row_bytes(linear);
}

// The piece after this one, if it has a matrix; its cache lines are asked for while this one's are used.
class Ahead {
 public:
  Ahead() = default; // nothing
  Ahead(const LinearWeights& linear, const Piece& piece) {
    if (!piece.matrix) return;
    at_ = address(linear, piece);
    end_ = at_ + num_bytes(linear, piece);
  }
  std::ptrdiff_t num_lines() const { return (end_ - at_) / 64; }
  // Asks for `count` lines more, perhaps some beyond its end.
  void fetch(std::ptrdiff_t count) {
    if (at_ >= end_) return;
    for (std::ptrdiff_t i = 0; i < count; ++i) __builtin_prefetch(at_ + i * 64, 0, 2);
    at_ += count * 64;
  }

 private:
  const std::uint8_t *at_ = nullptr, *end_ = nullptr;
};

// Where results go: (rows, stride) of float32, perhaps added to what is there, or of bfloat16.
class Output {
 public:
  Output(float* floats, std::ptrdiff_t stride, bool adds = false) : floats_(floats), stride_(stride), adds_(adds) {}
  Output(Bfloat16* halves, std::ptrdiff_t stride) : halves_(halves), stride_(stride) {}

  // The rows from `first` on.
  Output from(std::ptrdiff_t first) const {
    Output rest = *this;
    if (floats_) rest.floats_ += first * stride_;
    if (halves_) rest.halves_ += first * stride_;
    return rest;
  }

  // The first `count` values, at most kLanes.
  void put(std::ptrdiff_t row, std::ptrdiff_t column, Floats values, std::ptrdiff_t count) const {
    const std::ptrdiff_t at = row * stride_ + column;
    if (halves_) return store(halves_ + at, values, count);
    if (adds_) values = values + load(floats_ + at, count);
    store(floats_ + at, values, count);
  }

 private:
  float* floats_ = nullptr;
  Bfloat16* halves_ = nullptr;
  std::ptrdiff_t stride_;
  bool adds_ = false;
};

// Results of one row from output `first` of `matrix` on, at most kLanes: scaled, with the bias.
inline Floats finished(const Matrix& matrix, std::ptrdiff_t first, std::ptrdiff_t count, Floats values) {
  if (matrix.kind == kInt8) values = values * load(static_cast<const float*>(matrix.scales) + first, count);
  return matrix.bias ? values + load(matrix.bias + first, count) : values;
}

} // namespace fastvlm::FASTVLM_LEVEL
