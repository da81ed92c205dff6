// Linear layers in 8 bits: rows rounded as int8_rows.hpp does, weights with one scale for each output. Sums are exact.
//
// A layer's result is scale_of_row * scale * sum + low_of_row * total + bias, where `total` is the sum of the output's
// rounded weights times its scale.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "gelu.hpp"
#include "int8_rows.hpp"
#include "register_tile.hpp"
#include "scratch.hpp"

namespace fastvlm::FASTVLM_LEVEL {

// Pointers of a layer; native/int8_linear.py makes them. Arrays hold whole panels, padded with zeros.
struct Int8Layer {
  const std::int8_t* panels; // (panels, inputs / kDepth, kTileOutputs, kDepth)
  const float *scales, *totals, *bias;
  std::ptrdiff_t inputs, outputs; // without padding

  std::ptrdiff_t padded_inputs() const { return rounded_up(inputs, kInputUnit); }
  std::ptrdiff_t num_panels() const { return parts(outputs, kTileOutputs); }
  const std::int8_t* panel(std::ptrdiff_t index) const { return panels + index * padded_inputs() * kTileOutputs; }

#if defined(__AMX_INT8__)
  static constexpr std::ptrdiff_t kInputUnit = 64; // inputs of a tile register
#else
  static constexpr std::ptrdiff_t kInputUnit = Uint8Product::kDepth;
#endif
};

// Rounded rows of a block, and the sums of one panel.
class Int8Block {
 public:
  static constexpr int kHeight = kRegisters == 16 ? 4 : 12; // rows of a tile of sums: more need the ones again and again
  static constexpr std::ptrdiff_t kInputBlock = 1024;       // inputs whose weights stay in the first cache

  Int8Block(Scratch<std::uint8_t>& values, Scratch<RowRange>& ranges, Scratch<std::int32_t>& sums, std::ptrdiff_t rows,
            std::ptrdiff_t inputs)
      : rows_(rows),
        height_(rounded_up(rows, kHeight)),
        stride_(rounded_up(inputs, Int8Layer::kInputUnit)),
        values_(values.at_least(height_ * stride_)),
        ranges_(ranges.at_least(height_)),
        sums_(sums.at_least(height_ * kTileOutputs)) {}

  template <typename Number>
  void round(const Number* rows, std::ptrdiff_t inputs, std::ptrdiff_t stride) {
    for (std::ptrdiff_t row = 0; row < rows_; ++row)
      ranges_[row] = round_row(rows + row * stride, inputs, values_ + row * stride_, stride_);
    std::memset(values_ + rows_ * stride_, 0, static_cast<std::size_t>((height_ - rows_) * stride_));
  }

  // Calls epilogue(row, output, results) for each row and each vector of outputs.
  template <typename Epilogue>
  void multiply(const Int8Layer& layer, const Epilogue& epilogue) {
    for (std::ptrdiff_t index = 0; index < layer.num_panels(); ++index) {
      add_panel(layer.panel(index));
      const std::ptrdiff_t output = index * kTileOutputs;
      for (int i = 0; i < kTileVectors; ++i) scaled(layer, output + i * kLanes, i, epilogue);
    }
  }

 private:
  using Sums = TileSums<Uint8Product, kHeight>;

  void add_panel(const std::int8_t* panel) {
    std::memset(sums_, 0, static_cast<std::size_t>(height_ * kTileOutputs) * sizeof(std::int32_t));
    for (std::ptrdiff_t input = 0; input < stride_; input += kInputBlock) {
      const std::ptrdiff_t steps = std::min(kInputBlock, stride_ - input) / Uint8Product::kDepth;
      for (std::ptrdiff_t row = 0; row < height_; row += kHeight)
        add_products<Uint8Product, kHeight>(values_ + row * stride_ + input, stride_, panel + input * kTileOutputs, steps,
                                            *reinterpret_cast<Sums*>(sums_ + row * kTileOutputs));
    }
  }

  template <typename Epilogue>
  void scaled(const Int8Layer& layer, std::ptrdiff_t output, int vector, const Epilogue& epilogue) {
    const Floats scales = load(layer.scales + output), totals = load(layer.totals + output);
    const Floats bias = load(layer.bias + output);
    for (std::ptrdiff_t row = 0; row < rows_; ++row) {
      const Floats sums = to_floats(load_ints(sums_ + row * kTileOutputs + vector * kLanes));
      const Floats offset = multiply_add(broadcast(ranges_[row].low), totals, bias);
      epilogue(row, output, multiply_add(sums, broadcast(ranges_[row].scale) * scales, offset));
    }
  }

  std::ptrdiff_t rows_, height_, stride_;
  std::uint8_t* values_;
  RowRange* ranges_;
  std::int32_t* sums_;
};

// Writes or adds results to rows of `outputs` numbers.
template <typename Number>
struct RowsOfResults {
  Number* out;
  std::ptrdiff_t outputs;
  bool is_added;

  void operator()(std::ptrdiff_t row, std::ptrdiff_t output, Floats results) const {
    Number* at = out + row * outputs + output;
    const std::ptrdiff_t count = outputs - output;
    if (count >= kLanes) store(at, is_added ? load(at) + results : results);
    else if (count > 0) store(at, is_added ? load(at, count) + results : results, count);
  }
};

// Scratch memory of a thread.
struct Int8Scratch {
  Scratch<std::uint8_t> values[2];
  Scratch<RowRange> ranges[2];
  Scratch<std::int32_t> sums;
  Scratch<float> hidden;

  Int8Block block(int index, std::ptrdiff_t rows, std::ptrdiff_t inputs) {
    return {values[index], ranges[index], sums, rows, inputs};
  }
};

// Rows that a thread works on at a time: `hidden` numbers of each stay in the second cache.
inline std::ptrdiff_t int8_rows(std::ptrdiff_t rows, std::ptrdiff_t hidden, int threads) {
  constexpr std::ptrdiff_t kFewest = 32, kMost = 96, kBytes = 1 << 18;
  const std::ptrdiff_t fitting = kBytes / static_cast<std::ptrdiff_t>(sizeof(float)) / hidden;
  const std::ptrdiff_t wanted = std::max(kFewest, std::min(kMost, fitting));
  return rounded_up(std::min(wanted, parts(rows, threads)), Int8Block::kHeight);
}

template <typename Number>
void int8_linear(const Number* x, Number* out, std::ptrdiff_t rows, const Int8Layer& layer, bool is_added, int threads) {
  const std::ptrdiff_t size = int8_rows(rows, layer.outputs, threads);
  in_parallel(static_cast<std::size_t>(parts(rows, size)), threads, [&](std::size_t index) {
    static thread_local Int8Scratch scratch;
    const std::ptrdiff_t first = static_cast<std::ptrdiff_t>(index) * size, count = std::min(size, rows - first);
    Int8Block block = scratch.block(0, count, layer.inputs);
    block.round(x + first * layer.inputs, layer.inputs, layer.inputs);
    block.multiply(layer, RowsOfResults<Number>{out + first * layer.outputs, layer.outputs, is_added});
  });
}

// Adds narrow(gelu(widen(x))) to `out`; the hidden map stays in cache.
template <typename Number>
void int8_ffn(const Number* x, Number* out, std::ptrdiff_t rows, const Int8Layer& widen, const Int8Layer& narrow,
              int threads) {
  const std::ptrdiff_t size = int8_rows(rows, widen.outputs, threads), pitch = widen.num_panels() * kTileOutputs;
  in_parallel(static_cast<std::size_t>(parts(rows, size)), threads, [&](std::size_t index) {
    static thread_local Int8Scratch scratch;
    const std::ptrdiff_t first = static_cast<std::ptrdiff_t>(index) * size, count = std::min(size, rows - first);
    float* hidden = scratch.hidden.at_least(count * pitch);
    const Gelu gelu;
    Int8Block inputs = scratch.block(0, count, widen.inputs), wide = scratch.block(1, count, narrow.inputs);
    inputs.round(x + first * widen.inputs, widen.inputs, widen.inputs);
    inputs.multiply(widen, [&](std::ptrdiff_t row, std::ptrdiff_t output, Floats results) {
      store(hidden + row * pitch + output, gelu(results));
    });
    wide.round(hidden, narrow.inputs, pitch);
    wide.multiply(narrow, RowsOfResults<Number>{out + first * narrow.outputs, narrow.outputs, true});
  });
}

} // namespace fastvlm::FASTVLM_LEVEL
