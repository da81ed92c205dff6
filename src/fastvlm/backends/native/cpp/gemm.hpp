// GEMM for many rows: weights are packed into panels piece by piece and part by part, rows are shared by all threads.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <type_traits>

#include "exponential.hpp"
#include "gemm_small_m.hpp"
#include "linear_weights.hpp"
#include "panels.hpp"
#include "register_tile.hpp"
#include "scratch.hpp"
#include "team.hpp"

namespace fastvlm::FASTVLM_LEVEL {

constexpr std::ptrdiff_t kMaxRows = 512; // at a time
constexpr std::ptrdiff_t kPartBytes = 128 << 10; // of the rows' numbers for a part of the inputs: they stay in L2
constexpr std::ptrdiff_t kGroup = 4;             // panels that go through a part of the inputs together

// Rows as a linear's products want them: float32 or bfloat16 as they are, or int16 with a scale for each row.
//
// Tiles of kTileHeight rows follow one another; in a tile, for each step of a product the numbers of all its rows, so that
// they are read in order.
class Columns {
 public:
  enum Form { kFloats, kPairs, kRounded };

  Columns(Scratch<std::uint8_t>& memory, const LinearWeights& linear, std::ptrdiff_t num_rows, bool is_narrow)
      : num_rows_(num_rows), width_(padded_inputs(linear.inputs)), has_groups_(linear.kind() == kInt4) {
    const bool has_pairs = kHasBfloat16Pairs && is_narrow && linear.kind() == kBfloat16;
    form_ = linear.kind() == kInt8 || has_groups_ ? kRounded : has_pairs ? kPairs : kFloats;
    numbers_ = memory.at_least(num_bytes(num_rows, linear.inputs));
    scales_ = reinterpret_cast<float*>(numbers_ + padded_rows() * width_ * 4);
    sums_ = scales_ + padded_rows();
  }

  // What the memory must hold.
  static std::ptrdiff_t num_bytes(std::ptrdiff_t num_rows, std::ptrdiff_t inputs) {
    const std::ptrdiff_t width = padded_inputs(inputs);
    return rounded_up(num_rows, kTileHeight) * 4 * (width + 1 + width / kNibbleInputs);
  }

  // fill(row, numbers) puts a row of padded_inputs(inputs) float32 numbers.
  template <typename Fill>
  void pack(const TeamMember& member, const Fill& fill) const {
    static thread_local Scratch<float> memory;
    float* wide = memory.at_least(kTileHeight * width_);
    for (std::ptrdiff_t tile = member.index; tile * kTileHeight < num_rows_; tile = member.claim()) {
      const std::ptrdiff_t first = tile * kTileHeight;
      for (int i = 0; i < kTileHeight; ++i) {
        if (first + i < num_rows_) fill(first + i, wide + i * width_);
        else std::fill_n(wide + i * width_, width_, 0.0f);
      }
      if (form_ == kFloats) in_steps<FloatProduct>(wide, tile);
#if defined(__AVX512BF16__)
      if (form_ == kPairs) narrow_tile(wide, tile);
#endif
      if (form_ == kRounded) round_tile(wide, tile);
    }
  }

  Form form() const { return form_; }
  std::ptrdiff_t num_rows() const { return num_rows_; }
  // The tile that begins with `row`, from `input` on.
  template <typename Product>
  const typename Product::Left* tile(std::ptrdiff_t row, std::ptrdiff_t input) const {
    return numbers<typename Product::Left>() + row * width_ + input * kTileHeight;
  }
  float scale(std::ptrdiff_t row) const { return form_ == kRounded ? scales_[row] : 1.0f; }
  // The sum of the 32 inputs from `input` on, without the scale.
  float sum(std::ptrdiff_t row, std::ptrdiff_t input) const {
    return sums_[row * (width_ / kNibbleInputs) + input / kNibbleInputs];
  }

 private:
  std::ptrdiff_t padded_rows() const { return rounded_up(num_rows_, kTileHeight); }
  template <typename Left>
  Left* numbers() const {
    return reinterpret_cast<Left*>(numbers_);
  }

  template <typename Product>
  void in_steps(const typename Product::Left* rows, std::ptrdiff_t tile) const {
    auto* to = numbers<typename Product::Left>() + tile * kTileHeight * width_;
    for (std::ptrdiff_t input = 0; input < width_; input += Product::kDepth)
      for (int row = 0; row < kTileHeight; ++row)
        for (int i = 0; i < Product::kDepth; ++i) *to++ = rows[row * width_ + input + i];
  }

#if defined(__AVX512BF16__)
  void narrow_tile(const float* wide, std::ptrdiff_t tile) const {
    static thread_local Scratch<Bfloat16> memory;
    Bfloat16* rows = memory.at_least(kTileHeight * width_);
    for (std::ptrdiff_t i = 0; i < kTileHeight * width_; i += kLanes) store(rows + i, load(wide + i));
    in_steps<Bfloat16Product>(rows, tile);
  }
#endif

  void round_tile(const float* wide, std::ptrdiff_t tile) const {
    static thread_local Scratch<std::int16_t> memory;
    std::int16_t* rows = memory.at_least(kTileHeight * width_);
    for (int i = 0; i < kTileHeight; ++i) round_row(wide + i * width_, rows + i * width_, tile * kTileHeight + i);
    in_steps<Int16Product>(rows, tile);
  }

  void round_row(const float* from, std::int16_t* to, std::ptrdiff_t row) const {
    const float largest = largest_magnitude(from, width_), scale = largest == 0 ? 1.0f : largest / kLargestInt16;
    scales_[row] = scale;
    FewRows::store_int16(from, width_, 1 / scale, to);
    if (!has_groups_) return;
    for (std::ptrdiff_t i = 0; i < width_; i += kNibbleInputs) {
      std::int32_t sum = 0;
      for (std::ptrdiff_t j = i; j < i + kNibbleInputs; ++j) sum += to[j];
      sums_[row * (width_ / kNibbleInputs) + i / kNibbleInputs] = static_cast<float>(sum);
    }
  }

  std::ptrdiff_t num_rows_, width_;
  bool has_groups_;
  Form form_;
  std::uint8_t* numbers_;
  float *scales_, *sums_;
};

class Gemm {
 public:
  // `is_gated`: the first half of the outputs are gates of the second half, silu(gate) * other is what is put out.
  Gemm(const LinearWeights& linear, const Columns& columns, const Output& output, bool is_gated = false)
      : linear_(linear), columns_(columns), output_(output), is_gated_(is_gated), rows_(columns.num_rows()) {
    const std::ptrdiff_t bytes = columns.form() == Columns::kFloats ? 4 : 2;
    const std::ptrdiff_t most = std::max<std::ptrdiff_t>(kUnit, kPartBytes / (bytes * rows_) / kUnit * kUnit);
    depth_ = std::min({most, kLongest, rounded_up(linear.inputs, kUnit)});
  }

  void work(const TeamMember& member) const {
    const std::ptrdiff_t count = num_panels(), unit = is_gated_ ? 2 : 1;
    const std::ptrdiff_t group = count >= kGroup * member.size ? kGroup : unit;
    for (std::ptrdiff_t i = member.index; i * group < count; i = member.claim())
      multiply(i * group, std::min((i + 1) * group, count));
  }

 private:
  static constexpr std::ptrdiff_t kUnit = 64;     // inputs of a part are a multiple; more than two vectors of int16
  static constexpr std::ptrdiff_t kLongest = 512; // inputs of a part: int32 holds the sums of as many products, L1 a panel

  std::ptrdiff_t num_panels() const {
    return is_gated_ ? 2 * parts(linear_.outputs / 2, kTileOutputs) : num_pieces(linear_, kTileOutputs);
  }

  // Gates and what they let through alternate.
  Piece panel(std::ptrdiff_t index) const {
    if (!is_gated_) return piece(linear_, kTileOutputs, index);
    const std::ptrdiff_t half = linear_.outputs / 2, first = index / 2 * kTileOutputs;
    Piece gates{linear_.parts, first, std::min<std::ptrdiff_t>(kTileOutputs, half - first), first};
    if (index % 2 == 0) return gates;
    if (linear_.num_parts == 2) gates.matrix = linear_.parts + 1;
    else gates.first += half;
    return gates;
  }

  void multiply(std::ptrdiff_t first, std::ptrdiff_t last) const {
    static thread_local Scratch<float> memory;
    const std::ptrdiff_t size = rounded_up(rows_, kTileRowUnit) * kTileOutputs;
    float* sums = memory.at_least((last - first) * size);
    std::memset(sums, 0, static_cast<std::size_t>((last - first) * size) * sizeof(float));
    for (std::ptrdiff_t start = 0; start < linear_.inputs; start += depth_) {
      const std::ptrdiff_t stop = std::min(start + depth_, rounded_up(linear_.inputs, kUnit));
      for (std::ptrdiff_t i = first; i < last; ++i) add_part(panel(i), start, stop, sums + (i - first) * size);
    }
    for (std::ptrdiff_t i = first; i < last; i += is_gated_ ? 2 : 1) finish(i, sums + (i - first) * size);
  }

  void add_part(const Piece& piece, std::ptrdiff_t start, std::ptrdiff_t stop, float* sums) const {
    static thread_local Scratch<float> memory;
    float* panel = memory.at_least(kLongest * kTileOutputs);
    const auto rows = [&](auto type) {
      using Weight = decltype(type);
      return reinterpret_cast<const Weight*>(piece.matrix->values) + piece.first * linear_.inputs;
    };
    const auto pack = [&](auto words, auto type) {
      using Words = decltype(words);
      auto* to = reinterpret_cast<typename Words::Word*>(panel);
      pack_rows<Words>(rows(type), linear_.inputs, piece.count, start, stop, to);
      return to;
    };
    if (linear_.kind() == kInt4) {
      auto* to = reinterpret_cast<std::int16_t*>(panel);
      pack_nibbles(*piece.matrix, linear_.inputs, piece.first, start, std::min(stop, linear_.inputs), to);
      return add_nibbles(piece, start, std::min(stop, linear_.inputs), to, sums);
    }
    if (linear_.kind() == kInt8) return add_rounded(start, stop, pack(Int16Words{}, std::int8_t{}), sums);
#if defined(__AVX512BF16__)
    if (columns_.form() == Columns::kPairs)
      return add_floats<Bfloat16Product>(start, stop, pack(Bfloat16Words{}, Bfloat16{}), sums);
#endif
    const float* to = linear_.kind() == kBfloat16 ? pack(FloatWords{}, Bfloat16{}) : pack(FloatWords{}, float{});
    add_floats<FloatProduct>(start, stop, to, sums);
  }

  template <typename Product>
  static constexpr TileSteps kSteps{Product::kDepth, kTileHeight * Product::kDepth, kTileOutputs * Product::kDepth};

  template <typename Product>
  void add_floats(std::ptrdiff_t start, std::ptrdiff_t stop, const typename Product::Right* panel, float* sums) const {
    in_tiles(rows_, [&](std::ptrdiff_t row, auto num_rows) {
      constexpr int kRows = num_rows();
      float* at = sums + row * kTileOutputs;
      TileSums<Product, kRows> tile;
      for (int i = 0; i < kRows; ++i)
        for (int j = 0; j < kTileVectors; ++j) tile[i][j] = load(at + i * kTileOutputs + j * kLanes);
      const std::ptrdiff_t steps = (stop - start) / Product::kDepth;
      add_products<Product, kRows, kTileVectors>(columns_.tile<Product>(row, start), panel, kSteps<Product>, steps, tile);
      for (int i = 0; i < kRows; ++i)
        for (int j = 0; j < kTileVectors; ++j) store(at + i * kTileOutputs + j * kLanes, tile[i][j]);
    });
  }

  // Sums of at most kLongest products are exact.
  void add_rounded(std::ptrdiff_t start, std::ptrdiff_t stop, const std::int16_t* panel, float* sums) const {
    in_tiles(rows_, [&](std::ptrdiff_t row, auto num_rows) {
      constexpr int kRows = num_rows();
      TileSums<Int16Product, kRows> tile;
      clear<kRows>(tile);
      const std::int16_t* left = columns_.tile<Int16Product>(row, start);
      add_products<Int16Product, kRows, kTileVectors>(left, panel, kSteps<Int16Product>, (stop - start) / 2, tile);
      float* at = sums + row * kTileOutputs;
      for (int i = 0; i < kRows; ++i)
        for (int j = 0; j < kTileVectors; ++j, at += kLanes) store(at, load(at) + to_floats(tile[i][j]));
    });
  }

  template <int kRows>
  static void clear(TileSums<Int16Product, kRows>& tile) {
    for (int i = 0; i < kRows; ++i)
      for (int j = 0; j < kTileVectors; ++j) tile[i][j] = no_ints();
  }

  // Each 32 inputs have a scale and a zero: (value - 8) * scale + zero, times the row.
  void add_nibbles(const Piece& piece, std::ptrdiff_t start, std::ptrdiff_t stop, const std::int16_t* panel,
                   float* sums) const {
    in_tiles(rows_, [&](std::ptrdiff_t row, auto num_rows) {
      constexpr int kRows = num_rows();
      const std::int16_t* right = panel;
      for (std::ptrdiff_t input = start; input < stop; input += kNibbleInputs, right += kNibbleInputs * kTileOutputs) {
        TileSums<Int16Product, kRows> tile;
        clear<kRows>(tile);
        const std::int16_t* left = columns_.tile<Int16Product>(row, input);
        add_products<Int16Product, kRows, kTileVectors>(left, right, kSteps<Int16Product>, kNibbleInputs / 2, tile);
        const std::uint32_t* scales = scales_and_zeros(*piece.matrix, input, piece.first);
        for (int j = 0; j < kTileVectors; ++j) {
          Floats scale, zero;
          load_scales_and_zeros(scales + j * kLanes, scale, zero);
          for (int i = 0; i < kRows; ++i) {
            float* at = sums + (row + i) * kTileOutputs + j * kLanes;
            const Floats sum = multiply_add(scale, to_floats(tile[i][j]), load(at));
            store(at, multiply_add(zero, broadcast(columns_.sum(row + i, input)), sum));
          }
        }
      }
    });
  }

  void finish(std::ptrdiff_t index, const float* sums) const {
    const Piece some = panel(index), other = is_gated_ ? panel(index + 1) : Piece{};
    const float* others = sums + rounded_up(rows_, kTileRowUnit) * kTileOutputs;
    for (std::ptrdiff_t row = 0; row < rows_; ++row) {
      const Floats scale = broadcast(columns_.scale(row));
      for (std::ptrdiff_t i = 0; i < some.count; i += kLanes) {
        const std::ptrdiff_t at = row * kTileOutputs + i, count = some.count - i;
        Floats values = finished(*some.matrix, some.first + i, count, load(sums + at) * scale);
        if (is_gated_) values = silu(values) * finished(*other.matrix, other.first + i, count, load(others + at) * scale);
        output_.put(row, some.column + i, values, count);
      }
    }
  }

  const LinearWeights& linear_;
  const Columns& columns_;
  const Output output_;
  const bool is_gated_;
  const std::ptrdiff_t rows_;
  std::ptrdiff_t depth_;
};

} // namespace fastvlm::FASTVLM_LEVEL
