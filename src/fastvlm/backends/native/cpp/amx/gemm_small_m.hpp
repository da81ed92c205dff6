// GEMM for a few rows. It is bound by memory bandwidth, so each weight is read once, in order, and the next piece is
// prefetched.

#pragma once

#include "../linear_weights.hpp"
#include "gemm_unpacked.hpp"
#include "../team.hpp"

namespace fastvlm::FASTVLM_LEVEL {

constexpr float kLargest8 = 127.0f;      // what a row's largest value becomes
constexpr float kSecondSteps = 254.0f;   // steps of the second 8-bit term in one of the first
constexpr float kTiniestRow = 1e-30f;    // the largest value of a row of zeros, for its scale
constexpr std::ptrdiff_t kFewRows = 32;
constexpr std::ptrdiff_t kInt4Rows = 4; // for which 4-bit weights are multiplied as they are, one row after the other

// Rows of float32 as a linear wants them; each thread makes its own, which takes less than waiting for another's.
class FewRows {
 public:
  // `rows` (num_rows, inputs), `stride` apart, zeros up to padded_inputs(inputs); at most kFewRows.
  void prepare(const LinearWeights& linear, const float* rows, std::ptrdiff_t stride, std::ptrdiff_t num_rows) {
    width_ = padded_inputs(linear.inputs);
    num_rows_ = num_rows;
    is_rounded_ = linear.kind() == kInt8 || (linear.kind() == kInt4 && num_rows <= kInt4Rows);
    if (is_rounded_) {
      prepare_rounded(rows, stride);
      for (std::ptrdiff_t row = 0; linear.kind() == kInt4 && row < num_rows; ++row)
        sum_groups(row, linear.parts->group);
    } else {
      prepare_halves(rows, stride);
    }
    settle_memory();
  }

  bool is_rounded() const { return is_rounded_; }
  std::ptrdiff_t num_rows() const { return num_rows_; }
  // Rows in one tile of columns: a rounded row has two terms.
  std::ptrdiff_t tile_rows() const { return is_rounded_ ? kTileRows / 2 : kTileRows; }
  std::ptrdiff_t num_tiles() const { return (num_rows_ + tile_rows() - 1) / tile_rows(); }
  const std::uint8_t* tile(std::ptrdiff_t index) { return tiles_.get() + index * tile_bytes(); }
  float scale(std::ptrdiff_t row) const { return scales_[row]; }
  // The first or second terms of a row, and the sums of their groups.
  const std::int8_t* terms(std::ptrdiff_t row, bool is_second) {
    return terms_.get() + (row + (is_second ? second_term() : 0)) * width_;
  }
  const float* group_sums(std::ptrdiff_t row) { return group_sums_.get() + row * (width_ / kSmallestGroup); }
  // Rows from a row's first terms to its second: a single row's follow one another.
  std::ptrdiff_t second_term() const { return num_rows_ == 1 ? 1 : tile_rows(); }

 private:
  std::ptrdiff_t tile_bytes() const { return width_ / (is_rounded_ ? 64 : 32) * kTileBytes; }

  void prepare_halves(const float* rows, std::ptrdiff_t stride) {
    Bfloat16* halves = halves_.at_least(num_rows_ * width_);
    for (std::ptrdiff_t row = 0; row < num_rows_; ++row)
      for (std::ptrdiff_t i = 0; i < width_; i += kLanes)
        store(halves + row * width_ + i, load(rows + row * stride + i));
    std::uint8_t* tiles = tiles_.at_least(num_tiles() * tile_bytes());
    for (std::ptrdiff_t row = 0; row < num_rows_; row += kTileRows, tiles += tile_bytes())
      pack_columns(reinterpret_cast<const std::uint32_t*>(halves + row * width_), width_ / 2,
                   static_cast<int>(std::min<std::ptrdiff_t>(kTileRows, num_rows_ - row)), width_ / 2, tiles);
  }

  // For each 8 rows: their first terms, then their second ones.
  void prepare_rounded(const float* rows, std::ptrdiff_t stride) {
    const std::ptrdiff_t half = tile_rows();
    std::int8_t* terms = terms_.at_least(2 * half * width_);
    std::uint8_t* tiles = tiles_.at_least(num_tiles() * tile_bytes());
    for (std::ptrdiff_t row = 0; row < num_rows_; row += half, tiles += tile_bytes()) {
      const std::ptrdiff_t count = std::min(half, num_rows_ - row);
      const std::ptrdiff_t second = second_term();
      for (std::ptrdiff_t i = 0; i < half && i < count; ++i)
        scales_[row + i] = round_row(rows + (row + i) * stride, terms + i * width_, terms + (second + i) * width_);
      if (num_rows_ > 1) std::memset(terms + count * width_, 0, static_cast<std::size_t>((half - count) * width_));
      pack_columns(reinterpret_cast<const std::uint32_t*>(terms), width_ / 4,
                   static_cast<int>(second + count), width_ / 4, tiles);
    }
  }

  // row ~ (first + second / 254) * scale. A row that is not finite has a scale that is not finite.
  float round_row(const float* row, std::int8_t* first, std::int8_t* second) const {
    __m512i largest = _mm512_setzero_si512(); // as integers, of which those of NaN are the largest
    for (std::ptrdiff_t i = 0; i < width_; i += kLanes)
      largest = _mm512_max_epi32(largest, _mm512_and_si512(_mm512_loadu_si512(row + i), _mm512_set1_epi32(0x7FFFFFFF)));
    const int bits = _mm512_reduce_max_epi32(largest);
    float scale;
    std::memcpy(&scale, &bits, sizeof scale);
    if (scale < kTiniestRow) scale = kTiniestRow;
    scale /= kLargest8;
    const __m512 inverse = _mm512_set1_ps(1.0f / scale), steps = _mm512_set1_ps(kSecondSteps);
    for (std::ptrdiff_t i = 0; i < width_; i += kLanes) {
      const __m512 value = _mm512_mul_ps(_mm512_loadu_ps(row + i), inverse);
      const __m512i whole = _mm512_cvtps_epi32(value);
      const __m512i rest = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_sub_ps(value, _mm512_cvtepi32_ps(whole)), steps));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(first + i), _mm512_cvtsepi32_epi8(whole));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(second + i), _mm512_cvtsepi32_epi8(rest));
    }
    return scale;
  }

  void sum_groups(std::ptrdiff_t row, std::ptrdiff_t group) {
    float* sums = group_sums_.at_least(kInt4Rows * (width_ / kSmallestGroup)) + row * (width_ / kSmallestGroup);
    const std::int8_t *first = terms(row, false), *second = terms(row, true);
    for (std::ptrdiff_t i = 0; i < width_; i += group) {
      int whole = 0, rest = 0;
      for (std::ptrdiff_t j = i; j < std::min(i + group, width_); ++j) {
        whole += first[j];
        rest += second[j];
      }
      sums[i / group] = static_cast<float>(whole) + static_cast<float>(rest) / kSecondSteps;
    }
  }

  static constexpr std::ptrdiff_t kSmallestGroup = 32;
  std::ptrdiff_t width_ = 0, num_rows_ = 0;
  bool is_rounded_ = false;
  float scales_[kFewRows];
  Scratch<Bfloat16> halves_;
  Scratch<std::int8_t> terms_;
  Scratch<std::uint8_t> tiles_;
  Scratch<float> group_sums_;
};

// Two 16 x 16 results, to be added: 16 rows of weights times a tile of columns, `steps` times 64 bytes of either.
template <bool kIsInt8>
inline void multiply_panel(const std::uint8_t* weights, std::ptrdiff_t stride, const std::uint8_t* columns,
                           std::ptrdiff_t steps, Ahead& ahead, std::uint8_t* results) {
  _tile_zero(0);
  _tile_zero(1);
  for (std::ptrdiff_t step = 0; step < steps; step += 2) {
    ahead.fetch(16);
    _tile_loadd(2, weights + step * kTileRowBytes, stride);
    _tile_loadd(3, columns + step * kTileBytes, kTileRowBytes);
    if constexpr (kIsInt8) {
      _tile_dpbssd(0, 2, 3);
    } else {
      _tile_dpbf16ps(0, 2, 3);
    }
    if (step + 1 == steps) break;
    ahead.fetch(16);
    _tile_loadd(4, weights + (step + 1) * kTileRowBytes, stride);
    _tile_loadd(5, columns + (step + 1) * kTileBytes, kTileRowBytes);
    if constexpr (kIsInt8) {
      _tile_dpbssd(1, 4, 5);
    } else {
      _tile_dpbf16ps(1, 4, 5);
    }
  }
  _tile_stored(0, results, kTileRowBytes);
  _tile_stored(1, results + kTileBytes, kTileRowBytes);
  settle_memory();
}

class SmallMGemm {
 public:
  SmallMGemm(const LinearWeights& linear, FewRows& rows, const Output& output)
      : linear_(linear), rows_(rows), output_(output), size_(piece_size(linear)) {}

  // All pieces, in turns with the other threads.
  void work(const TeamMember& member) {
    const std::ptrdiff_t count = num_pieces(linear_, size_);
    for (std::ptrdiff_t index = member.index; index < count;) {
      const std::ptrdiff_t next = member.claim();
      multiply(piece(linear_, size_, index), next < count ? piece(linear_, size_, next) : Piece{});
      index = next;
    }
  }

  // Asks for the weights with which a thread begins.
  static void begin(const LinearWeights& linear, const TeamMember& member) {
    const std::ptrdiff_t size = piece_size(linear);
    if (member.index >= num_pieces(linear, size)) return;
    const Piece first = piece(linear, size, member.index);
    Ahead(linear, first).fetch(kBegun / 64);
  }

 private:
  static constexpr std::ptrdiff_t kBegun = 1 << 15;

  static std::ptrdiff_t piece_size(const LinearWeights& linear) { return linear.kind() == kInt4 ? kOutputs : kTileRows; }

  void multiply(const Piece& piece, const Piece& next) {
    Ahead ahead(linear_, next);
    if (linear_.kind() == kInt4) {
      multiply_int4(piece, next, ahead);
    } else if (piece.count == kTileRows && row_bytes(linear_) % kTileRowBytes == 0) {
      multiply_tiles(piece, address(linear_, piece), row_bytes(linear_), row_bytes(linear_), ahead);
    } else {
      multiply_odd(piece, ahead);
    }
  }

  // Fewer outputs than a tile has rows, or rows that are not made of whole tiles: over a copy.
  void multiply_odd(const Piece& piece, Ahead& ahead) {
    const std::ptrdiff_t bytes = row_bytes(linear_), stride = rounded_up(bytes, kTileRowBytes);
    std::uint8_t* copy = copy_.at_least(kTileRows * stride);
    std::memset(copy, 0, static_cast<std::size_t>(kTileRows * stride));
    for (std::ptrdiff_t i = 0; i < piece.count; ++i)
      std::memcpy(copy + i * stride, address(linear_, piece) + i * bytes, static_cast<std::size_t>(bytes));
    settle_memory();
    multiply_tiles(piece, copy, stride, stride, ahead);
  }

  // At most 16 outputs, in rows of `bytes`, whole tiles, that are `stride` bytes apart.
  void multiply_tiles(const Piece& piece, const std::uint8_t* weights, std::ptrdiff_t stride, std::ptrdiff_t bytes,
                      Ahead& ahead) {
    const std::ptrdiff_t steps = bytes / kTileRowBytes;
    alignas(64) std::uint8_t results[2 * kTileBytes];
        for (std::ptrdiff_t tile = 0; tile < rows_.num_tiles(); ++tile) {
      if (rows_.is_rounded()) {
        multiply_panel<true>(weights, stride, rows_.tile(tile), steps, ahead, results);
      } else {
        multiply_panel<false>(weights, stride, rows_.tile(tile), steps, ahead, results);
      }
      __m512i lanes[kTileRows];
      for (int i = 0; i < kTileRows; ++i) lanes[i] = added(results + i * kTileRowBytes);
      transpose(lanes);
      finish(piece, tile * rows_.tile_rows(), lanes);
    }
  }

  __m512i added(const std::uint8_t* row) const {
    const __m512i one = _mm512_load_si512(row), other = _mm512_load_si512(row + kTileBytes);
    if (rows_.is_rounded()) return _mm512_add_epi32(one, other);
    return _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(one), _mm512_castsi512_ps(other)));
  }

  void finish(const Piece& piece, std::ptrdiff_t first_row, const __m512i lanes[kTileRows]) {
    const std::ptrdiff_t count = std::min(rows_.tile_rows(), rows_.num_rows() - first_row);
    const std::ptrdiff_t second = rows_.second_term();
    for (std::ptrdiff_t i = 0; i < count; ++i) {
      __m512 values = _mm512_castsi512_ps(lanes[i]);
      if (rows_.is_rounded())
        values = _mm512_mul_ps(together(lanes[i], lanes[second + i]), _mm512_set1_ps(rows_.scale(first_row + i)));
      output_.put(first_row + i, piece.column, finished(*piece.matrix, piece.first, piece.count, values), piece.count);
    }
  }

  static __m512 together(__m512i first, __m512i second) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(second), _mm512_set1_ps(1 / kSecondSteps), _mm512_cvtepi32_ps(first));
  }

  void multiply_int4(const Piece& piece, const Piece& next, Ahead& ahead) {
    if (next.matrix) fetch_scales(next);
    if (rows_.is_rounded()) {
      for (std::ptrdiff_t row = 0; row < rows_.num_rows(); ++row) multiply_int4_row(piece, row, ahead);
      return;
    }
    const std::ptrdiff_t width = padded_inputs(linear_.inputs), stride = width + kBlock;
    Bfloat16* rows = halves_.at_least(kOutputs * stride);
    for (std::ptrdiff_t i = 0; i < piece.count; i += kUnpacked) {
      Piece part = piece;
      part.first += i;
      part.count = std::min(kUnpacked, piece.count - i);
      unpack(linear_, part, 0, width, rows + i * stride, stride);
    }
    settle_memory();
    for (std::ptrdiff_t i = 0; i < piece.count; i += kTileRows) {
      Piece panel = piece;
      panel.first += i;
      panel.column += i;
      panel.count = std::min<std::ptrdiff_t>(kTileRows, piece.count - i);
      multiply_tiles(panel, reinterpret_cast<std::uint8_t*>(rows + i * stride), stride * 2, width * 2, ahead);
    }
  }

  void fetch_scales(const Piece& piece) const {
    for (std::ptrdiff_t input = 0; input < linear_.inputs; input += piece.matrix->group) {
      const auto* scales = reinterpret_cast<const std::uint8_t*>(scales_and_zeros(*piece.matrix, input, piece.first));
      UNROLLED
      for (int i = 0; i < 4; ++i) _mm_prefetch(scales + i * 64, _MM_HINT_T1);
    }
  }

  // For each group the row's 8-bit terms times the values, then once the group's scale and zero.
  void multiply_int4_row(const Piece& piece, std::ptrdiff_t row, Ahead& ahead) {
    const Matrix& matrix = *piece.matrix;
    const std::uint8_t* packed = address(linear_, piece);
    const std::int8_t *first = rows_.terms(row, false), *second = rows_.terms(row, true);
    __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    for (std::ptrdiff_t input = 0; input < linear_.inputs; input += matrix.group) {
      __m512i wholes[4] = {}, rests[4] = {};
      for (std::ptrdiff_t i = input; i < input + matrix.group; i += 8, packed += 256) {
        ahead.fetch(4);
        add_quad(packed, first + i, second + i, wholes, rests);
        add_quad(packed + 128, first + i + 4, second + i + 4, wholes, rests);
      }
      const std::uint32_t* scales = scales_and_zeros(matrix, input, piece.first);
      const __m512 sum = _mm512_set1_ps(rows_.group_sums(row)[input / matrix.group]);
      UNROLLED
      for (int i = 0; i < 4; ++i) { // (value - 8) * scale + zero, times the row
        const __m512i both = _mm512_loadu_si512(scales + i * kLanes);
        const __m512 centered = _mm512_fnmadd_ps(_mm512_set1_ps(8), sum, together(wholes[i], rests[i]));
        sums[i] = _mm512_fmadd_ps(odd_lanes(both), sum, _mm512_fmadd_ps(even_lanes(both), centered, sums[i]));
      }
    }
    for (int i = 0; i < 4 && i * kLanes < piece.count; ++i) {
      const std::ptrdiff_t output = piece.first + i * kLanes;
      const std::ptrdiff_t left = piece.count - i * kLanes;
      const __m512 values = _mm512_mul_ps(sums[i], _mm512_set1_ps(rows_.scale(row)));
      output_.put(row, piece.column + i * kLanes, finished(matrix, output, left, values), left);
    }
  }

  void add_quad(const std::uint8_t* packed, const std::int8_t* first, const std::int8_t* second, __m512i wholes[4],
                __m512i rests[4]) const {
    __m512i left, right;
    nibbles_.pair(packed, left, right);
    const __m512i values[4] = {low_halves(left), low_halves(right), high_halves(left), high_halves(right)};
    int whole, rest;
    std::memcpy(&whole, first, sizeof whole);
    std::memcpy(&rest, second, sizeof rest);
    UNROLLED
    for (int i = 0; i < 4; ++i) {
      wholes[i] = _mm512_dpbusd_epi32(wholes[i], values[i], _mm512_set1_epi32(whole));
      rests[i] = _mm512_dpbusd_epi32(rests[i], values[i], _mm512_set1_epi32(rest));
    }
  }

  const LinearWeights& linear_;
  FewRows& rows_;
  const Output output_;
  const std::ptrdiff_t size_;
  const Nibbles nibbles_;
  static thread_local Scratch<std::uint8_t> copy_;
  static thread_local Scratch<Bfloat16> halves_;
};

inline thread_local Scratch<std::uint8_t> SmallMGemm::copy_;
inline thread_local Scratch<Bfloat16> SmallMGemm::halves_;

} // namespace fastvlm::FASTVLM_LEVEL
