// GEMM for a few rows. It is bound by memory bandwidth, so each weight is read once, in order, as it is stored, and
// prefetched shortly before.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>

#include "linear_weights.hpp"
#include "nibbles.hpp"
#include "register_tile.hpp"
#include "scratch.hpp"
#include "team.hpp"

namespace fastvlm::FASTVLM_LEVEL {

constexpr std::ptrdiff_t kFewRows = 24;
constexpr int kDotRows = kRegisters == 16 ? 3 : 4, kDotOutputs = 4; // whose sums are in registers together
constexpr int kRowsOfTerms = kRegisters == 16 ? 2 : 3;             // the same with 4-bit weights
constexpr float kLargestInt16 = 32767.0f;
constexpr std::ptrdiff_t kExactInputs = 512 * kLanes; // products of int8 and int16 that a vector of int32 sums holds

// Products along the inputs: weights are read row by row, kStep inputs at a time.
struct FloatDot {
  using Weight = float;
  using Left = float;
  using Sum = Floats;
  static constexpr int kStep = kLanes;
  static Sum none() { return zeros(); }
  static Floats weights(const Weight* at) { return load(at); }
  static Floats left(const Left* at) { return load(at); }
  static Sum add(Sum sums, Floats left, Floats weights) { return multiply_add(left, weights, sums); }
  static float total(Sum sums) { return sum(sums); }
};

struct Bfloat16Dot : FloatDot {
  using Weight = Bfloat16;
  static Floats weights(const Weight* at) { return load(at); }
};

struct Int8Dot {
  using Weight = std::int8_t;
  using Left = std::int16_t;
  using Sum = Ints;
  static constexpr int kStep = 2 * kLanes;
  static Sum none() { return no_ints(); }
  static Ints weights(const Weight* at) { return widen_int8(at); }
  static Ints left(const Left* at) { return load_ints(at); }
  static Sum add(Sum sums, Ints left, Ints weights) { return add_pairs(sums, left, weights); }
  static float total(Sum sums) { return sum(to_floats(sums)); }
};

// The largest magnitude of `width` numbers, or something that is not finite if one of them is not.
inline float largest_magnitude(const float* row, std::ptrdiff_t width) {
  Floats most = zeros(), added = zeros();
  for (std::ptrdiff_t i = 0; i < width; i += kLanes) {
    const Floats magnitude = with_sign(load(row + i), broadcast(1));
    most = larger(most, magnitude);
    added = added + magnitude * zeros(); // not zero if it is infinite or NaN
  }
  return largest(most) + sum(added);
}

// Rows of float32 as a linear wants them; each thread makes its own, which takes less than waiting for another's.
class FewRows {
 public:
  // `rows` (num_rows, inputs), `stride` apart, zeros up to padded_inputs(inputs), at most kFewRows; they must outlive this.
  void prepare(const LinearWeights& linear, const float* rows, std::ptrdiff_t stride, std::ptrdiff_t num_rows) {
    rows_ = rows;
    stride_ = stride;
    num_rows_ = num_rows;
    width_ = padded_inputs(linear.inputs);
    for (std::ptrdiff_t row = 0; row < num_rows; ++row) {
      if (linear.kind() == kInt8) round_to_int16(row);
      if (linear.kind() == kInt4) round_to_terms(row);
    }
  }

  std::ptrdiff_t num_rows() const { return num_rows_; }
  std::ptrdiff_t stride() const { return stride_; }
  std::ptrdiff_t width() const { return width_; }
  const float* floats() const { return rows_; }
  const std::int16_t* int16() { return int16_.get(); }
  const std::int8_t* terms(std::ptrdiff_t row) { return terms_.get() + row * width_ * NibbleRow::kInputBytes; }
  // Sums of each 32 inputs of a row of terms, times kSteps.
  const float* term_sums(std::ptrdiff_t row) { return sums_.get() + row * (width_ / kNibbleInputs); }
  // What results of rounded rows are to be multiplied with.
  float scale(std::ptrdiff_t row) const { return scales_[row]; }

 private:
  // A row of zeros has a scale too.
  static float scale_of(float largest, float steps) { return largest == 0 ? 1.0f : largest / steps; }

  void round_to_int16(std::ptrdiff_t row) {
    const float* from = rows_ + row * stride_;
    std::int16_t* to = int16_.at_least(kFewRows * width_) + row * width_;
    const float scale = scale_of(largest_magnitude(from, width_), kLargestInt16);
    scales_[row] = scale;
    store_int16(from, width_, 1 / scale, to);
  }

 public:
  // `width` numbers, a multiple of 2 kLanes, times `factor`, rounded.
  static void store_int16(const float* from, std::ptrdiff_t width, float factor, std::int16_t* to) {
    const Floats by = broadcast(factor);
    for (std::ptrdiff_t i = 0; i < width; i += 2 * kLanes)
      store_ints(to + i, narrow_to_int16(nearest_ints(load(from + i) * by), nearest_ints(load(from + i + kLanes) * by)));
  }

 private:
  void round_to_terms(std::ptrdiff_t row) {
    const float* from = rows_ + row * stride_;
    std::int8_t* to = terms_.at_least(kFewRows * width_ * NibbleRow::kInputBytes) + row * width_ * NibbleRow::kInputBytes;
    float* sums = sums_.at_least(kFewRows * (width_ / kNibbleInputs)) + row * (width_ / kNibbleInputs);
    const float scale = scale_of(largest_magnitude(from, width_), NibbleRow::kLargest);
    scales_[row] = scale / NibbleRow::kSteps;
    if (!std::isfinite(scale)) return; // every result is NaN, whatever the terms are
    for (std::ptrdiff_t i = 0; i < width_; i += kNibbleInputs) {
      std::int16_t first[kNibbleInputs], second[kNibbleInputs];
      sums[i / kNibbleInputs] = split(from + i, broadcast(1 / scale), first, second);
      for (std::ptrdiff_t j = 0; j < kNibbleInputs; ++j)
        NibbleRow::put(to, i + j, static_cast<std::int8_t>(first[j]), static_cast<std::int8_t>(second[j]));
    }
  }

  // 32 numbers in units of the scale: their integers, and what is left in steps. Gives the sum in steps.
  static float split(const float* from, Floats inverse, std::int16_t* first, std::int16_t* second) {
    const Floats steps = broadcast(NibbleRow::kSteps);
    Floats total = zeros();
    for (std::ptrdiff_t i = 0; i < kNibbleInputs; i += 2 * kLanes) {
      Ints wholes[2], rests[2];
      for (int half = 0; half < 2; ++half) {
        const Floats value = load(from + i + half * kLanes) * inverse, whole = nearest_integers(value);
        const Floats rest = nearest_integers((value - whole) * steps);
        total = total + multiply_add(whole, steps, rest);
        wholes[half] = nearest_ints(whole);
        rests[half] = nearest_ints(rest);
      }
      store_ints(first + i, narrow_to_int16(wholes[0], wholes[1]));
      store_ints(second + i, narrow_to_int16(rests[0], rests[1]));
    }
    return sum(total);
  }

  const float* rows_ = nullptr;
  std::ptrdiff_t stride_ = 0, num_rows_ = 0, width_ = 0;
  float scales_[kFewRows];
  Scratch<std::int16_t> int16_;
  Scratch<std::int8_t> terms_;
  Scratch<float> sums_;
};

// Asks for the cache lines of one piece and then of the next one, each kDistance bytes before it is used. Where weights
// are read once, lines asked for a whole piece before come too early (Zen 3, one row of bfloat16: 15.0 instead of 18.1
// GB/s); with more rows they come in time, and the L1 cache keeps the rows.
class NearAhead {
 public:
  NearAhead() = default; // nothing
  NearAhead(const LinearWeights& linear, const Piece& piece, const Piece& next)
      : at_(address(linear, piece) + kDistance), end_(address(linear, piece) + num_bytes(linear, piece)) {
    if (next.matrix) next_ = address(linear, next);
  }

  // Asks for the first lines of a piece.
  static void begin(const LinearWeights& linear, const Piece& piece) {
    fetch_lines(address(linear, piece), kDistance / kCacheLine);
  }

  // Asks for `count` lines more, perhaps some beyond a piece's end.
  void fetch(std::ptrdiff_t count) {
    if (at_ >= end_) {
      if (!next_) return;
      at_ = next_;
      end_ = at_ + kDistance;
      next_ = nullptr;
    }
    fetch_lines(at_, count);
    at_ += count * kCacheLine;
  }

 private:
  static constexpr std::ptrdiff_t kDistance = std::ptrdiff_t{16} << 10;

  static void fetch_lines(const std::uint8_t* at, std::ptrdiff_t count) {
    for (std::ptrdiff_t i = 0; i < count; ++i) __builtin_prefetch(at + i * kCacheLine, 0, 3);
  }

  const std::uint8_t *at_ = nullptr, *end_ = nullptr, *next_ = nullptr;
};

class SmallMGemm {
 public:
  SmallMGemm(const LinearWeights& linear, FewRows& rows, const Output& output)
      : linear_(linear), rows_(rows), output_(output) {}

  // All pieces, in turns with the other threads.
  void work(const TeamMember& member) {
    const std::ptrdiff_t count = num_pieces(linear_, kPiece);
    for (std::ptrdiff_t index = member.index; index < count;) {
      const std::ptrdiff_t next = member.claim();
      multiply(piece(linear_, kPiece, index), next < count ? piece(linear_, kPiece, next) : Piece{});
      index = next;
    }
  }

  // Asks for the weights with which a thread begins.
  static void begin(const LinearWeights& linear, const TeamMember& member) {
    if (member.index < num_pieces(linear, kPiece)) NearAhead::begin(linear, piece(linear, kPiece, member.index));
  }

 private:
  static constexpr std::ptrdiff_t kPiece = kOutputs; // 4-bit weights are in blocks of as many

  void multiply(const Piece& piece, const Piece& next) {
    const bool is_once = rows_.num_rows() <= kDotRows; // weights are read once
    if (is_once) multiply(piece, NearAhead(linear_, piece, next));
    else multiply(piece, Ahead(linear_, next));
  }

  template <typename AnyAhead>
  void multiply(const Piece& piece, AnyAhead ahead) {
    switch (linear_.kind()) {
      case kBfloat16: return multiply_dots<Bfloat16Dot>(piece, rows_.floats(), rows_.stride(), ahead);
      case kFloat32Weights: return multiply_dots<FloatDot>(piece, rows_.floats(), rows_.stride(), ahead);
      case kInt8: return multiply_dots<Int8Dot>(piece, rows_.int16(), rows_.width(), ahead);
      case kInt4: return multiply_int4(piece, ahead);
    }
  }

  template <typename Dot, typename AnyAhead>
  void multiply_dots(const Piece& piece, const typename Dot::Left* rows, std::ptrdiff_t stride, AnyAhead& ahead) {
    for (std::ptrdiff_t output = 0; output < piece.count;) {
      const bool is_whole = output + kDotOutputs <= piece.count;
      for (std::ptrdiff_t row = 0; row < rows_.num_rows(); row += kDotRows) {
        const int count = static_cast<int>(std::min<std::ptrdiff_t>(kDotRows, rows_.num_rows() - row));
        with_count<kDotRows>(count, [&](auto num_rows) {
          constexpr int kRows = num_rows();
          if (is_whole) dots<Dot, kRows, kDotOutputs>(piece, output, rows, stride, row, ahead);
          else dots<Dot, kRows, 1>(piece, output, rows, stride, row, ahead);
        });
      }
      output += is_whole ? kDotOutputs : 1;
    }
    finish(piece);
  }

  template <typename Dot, int kRows, int kOutputs, typename AnyAhead>
  void dots(const Piece& piece, std::ptrdiff_t output, const typename Dot::Left* rows, std::ptrdiff_t stride,
            std::ptrdiff_t row, AnyAhead& ahead) {
    using Weight = typename Dot::Weight;
    const std::ptrdiff_t inputs = linear_.inputs, whole = inputs / Dot::kStep * Dot::kStep;
    const auto* weights = reinterpret_cast<const Weight*>(piece.matrix->values) + (piece.first + output) * inputs;
    const typename Dot::Left* left = rows + row * stride;
    AnyAhead none;
    float totals[kRows][kOutputs] = {};
    for (std::ptrdiff_t input = 0; input < whole; input += kExactInputs)
      add_dots<Dot, kRows, kOutputs>(left + input, stride, weights + input, inputs, std::min(whole - input, kExactInputs),
                                     row == 0 ? ahead : none, totals);
    if (whole < inputs) { // what is left of a step, over a copy
      Weight rest[kOutputs * Dot::kStep] = {};
      for (int j = 0; j < kOutputs; ++j)
        std::memcpy(rest + j * Dot::kStep, weights + j * inputs + whole,
                    static_cast<std::size_t>(inputs - whole) * sizeof(Weight));
      add_dots<Dot, kRows, kOutputs>(left + whole, stride, rest, Dot::kStep, Dot::kStep, none, totals);
    }
    for (int i = 0; i < kRows; ++i)
      for (int j = 0; j < kOutputs; ++j) results_[row + i][output + j] = totals[i][j];
  }

  // Adds the products of `inputs` inputs, whole steps; weights of the next output are `next` numbers further. Not inline:
  // among a caller's variables g++ 12 keeps sums in memory.
  template <typename Dot, int kRows, int kOutputs, typename AnyAhead>
  [[gnu::noinline]] static void add_dots(const typename Dot::Left* left, std::ptrdiff_t stride,
                                         const typename Dot::Weight* weights, std::ptrdiff_t next, std::ptrdiff_t inputs,
                                         AnyAhead& ahead, float (&totals)[kRows][kOutputs]) {
    constexpr int kBytes = kOutputs * Dot::kStep * static_cast<int>(sizeof(typename Dot::Weight)); // of weights a step
    typename Dot::Sum sums[kRows][kOutputs];
    UNROLLED
    for (int i = 0; i < kRows; ++i)
      for (int j = 0; j < kOutputs; ++j) sums[i][j] = Dot::none();
    AnyAhead later = ahead;
    for (std::ptrdiff_t input = 0; input < inputs; input += Dot::kStep) {
      later.fetch((kBytes + kCacheLine - 1) / kCacheLine);
      decltype(Dot::left(left)) numbers[kRows];
      UNROLLED
      for (int i = 0; i < kRows; ++i) numbers[i] = Dot::left(left + input + i * stride);
      UNROLLED
      for (int j = 0; j < kOutputs; ++j) {
        const auto some = Dot::weights(weights + input + j * next);
        UNROLLED
        for (int i = 0; i < kRows; ++i) sums[i][j] = Dot::add(sums[i][j], numbers[i], some);
      }
    }
    ahead = later;
    UNROLLED
    for (int i = 0; i < kRows; ++i)
      for (int j = 0; j < kOutputs; ++j) totals[i][j] += Dot::total(sums[i][j]);
  }

  template <typename AnyAhead>
  void multiply_int4(const Piece& piece, AnyAhead& ahead) {
    std::memset(results_, 0, sizeof(results_[0]) * static_cast<std::size_t>(rows_.num_rows()));
    for (std::ptrdiff_t row = 0; row < rows_.num_rows(); row += kRowsOfTerms) {
      const int count = static_cast<int>(std::min<std::ptrdiff_t>(kRowsOfTerms, rows_.num_rows() - row));
      with_count<kRowsOfTerms>(count, [&](auto num_rows) { nibbles<num_rows()>(piece, row, ahead); });
    }
    finish(piece);
  }

  template <int kRows, typename AnyAhead>
  void nibbles(const Piece& piece, std::ptrdiff_t first, AnyAhead& ahead) {
    const std::uint8_t* packed = address(linear_, piece);
    constexpr std::ptrdiff_t kBytes = kNibbleInputs * kOutputs / 2;
    for (std::ptrdiff_t input = 0; input < linear_.inputs; input += kNibbleInputs, packed += kBytes) {
      if (first == 0) ahead.fetch(kBytes / kCacheLine);
      const std::int8_t* rows[kRows];
      float sums[kRows];
      UNROLLED
      for (int i = 0; i < kRows; ++i) {
        rows[i] = rows_.terms(first + i) + input * NibbleRow::kInputBytes;
        sums[i] = rows_.term_sums(first + i)[input / kNibbleInputs];
      }
      const std::uint32_t* scales = scales_and_zeros(*piece.matrix, input, piece.first);
      half_of_nibbles<kRows, false>(packed, rows, sums, scales, first);
      half_of_nibbles<kRows, true>(packed, rows, sums, scales, first);
    }
  }

  // (value - 8) * scale + zero, times the row: 32 inputs of 32 outputs.
  template <int kRows, bool kIsHigh>
  void half_of_nibbles(const std::uint8_t* packed, const std::int8_t* const (&rows)[kRows], const float (&row_sums)[kRows],
                       const std::uint32_t* scales, std::ptrdiff_t first) {
    constexpr int kHalf = kNibbleVectors / 2, kFirst = kIsHigh ? kOutputs / 2 : 0;
    Ints sums[kRows][kHalf];
    multiply_nibbles<kRows, kIsHigh>(packed, rows, sums);
    for (int i = 0; i < kHalf; ++i) {
      Floats scale, zero;
      load_scales_and_zeros(scales + kFirst + i * kLanes, scale, zero);
      for (int row = 0; row < kRows; ++row) {
        const Floats of_row = broadcast(row_sums[row]);
        const Floats centered = subtract_product(to_floats(sums[row][i]), broadcast(8), of_row);
        float* result = results_[first + row] + kFirst + i * kLanes;
        store(result, multiply_add(zero, of_row, multiply_add(scale, centered, load(result))));
      }
    }
  }

  void finish(const Piece& piece) {
    const bool is_rounded = linear_.kind() == kInt8 || linear_.kind() == kInt4;
    for (std::ptrdiff_t row = 0; row < rows_.num_rows(); ++row) {
      const Floats scale = broadcast(is_rounded ? rows_.scale(row) : 1.0f);
      for (std::ptrdiff_t i = 0; i < piece.count; i += kLanes) {
        const std::ptrdiff_t count = piece.count - i;
        const Floats values = load(results_[row] + i) * scale;
        output_.put(row, piece.column + i, finished(*piece.matrix, piece.first + i, count, values), count);
      }
    }
  }

  const LinearWeights& linear_;
  FewRows& rows_;
  const Output output_;
  alignas(64) float results_[kFewRows][kOutputs];
};

} // namespace fastvlm::FASTVLM_LEVEL
