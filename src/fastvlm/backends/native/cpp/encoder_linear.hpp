// Linear layers of the encoder by tiles of vector registers, for hundreds of rows.
//
// A thread takes a block of rows through a layer. Rows are copied as the product's left numbers, which lie in L2 then,
// close together. Inputs are taken in parts, so that a panel of weights stays in L1 while all rows go over it.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "gelu.hpp"
#include "interface.hpp"
#include "register_tile.hpp"
#include "scratch.hpp"
#include "threads.hpp"

namespace fastvlm::FASTVLM_LEVEL {

constexpr std::ptrdiff_t kBlockRows = 96;   // at most; whole tiles
constexpr std::ptrdiff_t kPartBytes = 1536; // of a row's left numbers in a part of the inputs
constexpr std::ptrdiff_t kHeadWidth = 32;   // of the encoder's attention

// The product of numbers of a type with weights that are stored in the same type.
template <typename Number>
struct ProductOf {
  using type = FloatProduct;
};
template <>
struct ProductOf<Bfloat16> {
#if defined(__AVX512BF16__)
  using type = Bfloat16Product;
#else
  using type = WidenedProduct;
#endif
};

template <typename Product>
struct PackedLayer {
  const typename Product::Right* weight; // (panels, steps, kTileOutputs, kDepth), zeros where there is no output or input
  const float* bias;                     // (panels * kTileOutputs,)
  std::ptrdiff_t inputs, outputs;

  std::ptrdiff_t steps() const { return parts(inputs, Product::kDepth); }
  std::ptrdiff_t panels() const { return parts(outputs, kTileOutputs); }
  const typename Product::Right* panel(std::ptrdiff_t index, std::ptrdiff_t step) const {
    return weight + (index * steps() + step) * kTileOutputs * Product::kDepth;
  }
};

// Rows of left numbers; behind the last one there is memory for a whole tile.
template <typename Left>
struct LeftRows {
  Left* data;
  std::ptrdiff_t rows, stride;

  static std::ptrdiff_t stride_of(std::ptrdiff_t columns) {
    constexpr std::ptrdiff_t kLine = kCacheLine / sizeof(Left);
    return rounded_up(columns, kLine) + kLine; // rows a power of 2 apart would share a few sets of the cache
  }
  // Uninitialized rows in `memory`.
  LeftRows(Scratch<Left>& memory, std::ptrdiff_t count, std::ptrdiff_t columns)
      : data(nullptr), rows(count), stride(stride_of(columns)) {
    data = memory.at_least(rounded_up(rows, kTileHeight) * stride);
  }
  void clear_missing() const {
    const std::ptrdiff_t missing = rounded_up(rows, kTileHeight) - rows;
    std::memset(static_cast<void*>(data + rows * stride), 0, static_cast<std::size_t>(missing * stride) * sizeof(Left));
  }
  // A copy of rows of `columns` numbers.
  template <typename Number>
  void copy(const Number* from, std::ptrdiff_t columns) const {
    const std::ptrdiff_t all = stride_of(columns) - kCacheLine / static_cast<std::ptrdiff_t>(sizeof(Left));
    for (std::ptrdiff_t row = 0; row < rows; ++row) {
      Left* const to = data + row * stride;
      std::ptrdiff_t i = 0;
      for (; i + kLanes <= columns; i += kLanes) store(to + i, load(from + row * columns + i));
      if (i < columns) store(to + i, load(from + row * columns + i, columns - i), columns - i);
      std::fill(to + columns, to + all, Left{});
    }
    clear_missing();
  }
};

// Steps of the inputs of a layer.
struct StepRange {
  std::ptrdiff_t first, count;
  bool is_first, is_last; // of the layer
};

// Calls work(range) for parts of `steps` of about the same size.
template <typename Product, typename Work>
void in_step_ranges(std::ptrdiff_t steps, const Work& work) {
  constexpr std::ptrdiff_t kMost = kPartBytes / (Product::kDepth * sizeof(typename Product::Left));
  const std::ptrdiff_t size = parts(steps, parts(steps, kMost));
  for (std::ptrdiff_t first = 0; first < steps; first += size)
    work(StepRange{first, std::min(size, steps - first), first == 0, first + size >= steps});
}

template <typename Product>
struct SavedTile {
  TileSums<Product, kTileHeight> sums;
};

// Panels of `layer` on a range of its inputs; `left` begins with the range's first input. After the last range
// write(sums of a row, row, first output) is called for each row of each panel; until then `saved` holds the sums.
template <typename Product, typename Write>
void multiply(const LeftRows<typename Product::Left>& left, const StepRange& range, const PackedLayer<Product>& layer,
              std::ptrdiff_t first_panel, std::ptrdiff_t panels, SavedTile<Product>* saved, const Write& write) {
  for (std::ptrdiff_t panel = first_panel; panel < first_panel + panels; ++panel) {
    const auto* weights = layer.panel(panel, range.first);
    const char* next = reinterpret_cast<const char*>(layer.panel(panel + 1, range.first));
    const auto prefetch = [&next] {
      __builtin_prefetch(next, 0, 2);
      next += kCacheLine;
    };
    for (std::ptrdiff_t row = 0; row < left.rows; row += kTileHeight, ++saved) {
      TileSums<Product, kTileHeight> sums;
      UNROLLED
      for (int i = 0; i < kTileHeight; ++i)
        for (int j = 0; j < kTileVectors; ++j) sums[i][j] = range.is_first ? Product::none() : saved->sums[i][j];
      add_products<Product, kTileHeight>(left.data + row * left.stride, left.stride, weights, range.count, sums, prefetch);
      if (range.is_last) {
        const std::ptrdiff_t count = left.rows - row;
        if (count >= kTileHeight) {
          UNROLLED
          for (int i = 0; i < kTileHeight; ++i) write(sums[i], row + i, panel * kTileOutputs);
        } else {
          UNROLLED
          for (int i = 0; i < kTileHeight; ++i)
            if (i < count) write(sums[i], row + i, panel * kTileOutputs);
        }
      } else {
        UNROLLED
        for (int i = 0; i < kTileHeight; ++i)
          for (int j = 0; j < kTileVectors; ++j) saved->sums[i][j] = sums[i][j];
      }
    }
  }
}

// Panels of `layer` on all of its inputs.
template <typename Product, typename Write>
void apply(const LeftRows<typename Product::Left>& left, const PackedLayer<Product>& layer, std::ptrdiff_t first_panel,
           std::ptrdiff_t panels, const Write& write) {
  static thread_local Scratch<SavedTile<Product>> memory;
  SavedTile<Product>* const saved = memory.at_least(panels * parts(left.rows, kTileHeight));
  in_step_ranges<Product>(layer.steps(), [&](const StepRange& range) {
    LeftRows<typename Product::Left> some = left;
    some.data += range.first * Product::kDepth;
    multiply(some, range, layer, first_panel, panels, saved, write);
  });
}

// Where results go: from a row to the next one, and from 32 outputs to those beside them.
template <typename Number>
struct Destination {
  Number* data;
  std::ptrdiff_t row, beside = kHeadWidth;

  Number* at(std::ptrdiff_t row_index, std::ptrdiff_t output) const {
    return data + row_index * row + output / kHeadWidth * beside + output % kHeadWidth;
  }
};

struct Plain {
  Floats operator()(Floats x, const void*, std::ptrdiff_t) const { return x; }
};

struct WithGelu {
  Gelu gelu;
  Floats operator()(Floats x, const void*, std::ptrdiff_t) const { return gelu(x); }
};

// Adds to what is there.
struct Added {
  template <typename Number>
  Floats operator()(Floats x, const Number* there, std::ptrdiff_t count) const {
    return x + (count >= kLanes ? load(there) : load(there, count));
  }
};

// Writes finish(sums + bias, destination, number of outputs).
template <typename Number, typename Finish>
struct WriteFloats {
  Destination<Number> to;
  const float* bias;
  std::ptrdiff_t outputs;
  Finish finish;

  void operator()(const Floats (&sums)[kTileVectors], std::ptrdiff_t row, std::ptrdiff_t output) const {
    UNROLLED
    for (int i = 0; i < kTileVectors; ++i, output += kLanes) {
      const std::ptrdiff_t count = outputs - output;
      if (count <= 0) return;
      Number* const at = to.at(row, output);
      const Floats values = finish(sums[i] + load(bias + output), at, count);
      if (count >= kLanes) store(at, values);
      else store(at, values, count);
    }
  }
};

// Calls work(first row, rows) for blocks of rows, as many for each thread.
template <typename Work>
void in_row_blocks(std::ptrdiff_t rows, int threads, const Work& work) {
  const std::ptrdiff_t rounds = parts(rows, threads * kBlockRows);
  const std::ptrdiff_t block = std::min(kBlockRows, rounded_up(parts(rows, threads * rounds), kTileHeight));
  in_parallel(static_cast<std::size_t>(parts(rows, block)), threads, [&](std::size_t index) {
    const std::ptrdiff_t start = static_cast<std::ptrdiff_t>(index) * block;
    const FlushDenormals tiny;
    work(start, std::min(block, rows - start));
  });
}

// output = input times the layer's weight, plus its bias, for `rows` rows.
template <typename Number>
void linear(const Number* input, Number* output, std::ptrdiff_t rows, const PackedLayer<typename ProductOf<Number>::type>& layer,
            int epilogue, int threads) {
  using Left = typename ProductOf<Number>::type::Left;
  in_row_blocks(rows, threads, [&](std::ptrdiff_t start, std::ptrdiff_t count) {
    static thread_local Scratch<Left> memory;
    const LeftRows<Left> left(memory, count, layer.inputs);
    left.copy(input + start * layer.inputs, layer.inputs);
    Destination<Number> to{output + start * layer.outputs, layer.outputs};
    if (epilogue == kHeads) to = {output + start * kHeadWidth, kHeadWidth, rows * kHeadWidth};
    const auto finished = [&](const auto& finish) {
      apply(left, layer, 0, layer.panels(), WriteFloats<Number, std::decay_t<decltype(finish)>>{to, layer.bias, layer.outputs, finish});
    };
    if (epilogue == kGelu) finished(WithGelu{});
    else if (epilogue == kAdded) finished(Added{});
    else finished(Plain{});
  });
}

} // namespace fastvlm::FASTVLM_LEVEL
