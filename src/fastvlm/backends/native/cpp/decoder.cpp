// C interface of the decoder's kernels, compiled once for each level. Tensors are contiguous; `dtype` is a Dtype.

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "decoder_pass.hpp"
#include "interface.hpp"
#include "level_gemm.hpp"
#include "team.hpp"

using namespace fastvlm::FASTVLM_LEVEL;

namespace {

// Rows (count, inputs) as float32 (count, padded inputs).
template <typename Number>
float* widened_rows(const Number* rows, std::ptrdiff_t count, std::ptrdiff_t inputs) {
  static thread_local Scratch<float> memory;
  const std::ptrdiff_t width = padded_inputs(inputs);
  float* wide = memory.at_least(count * width);
  for (std::ptrdiff_t row = 0; row < count; ++row)
    for (std::ptrdiff_t i = 0; i < width; i += kLanes) store(wide + row * width + i, load(rows + row * inputs + i, inputs - i));
  return wide;
}

// Each thread prepares the rows for itself.
template <typename Number>
void few_rows(const LinearWeights& linear, const Number* rows, std::ptrdiff_t count, const Output& output,
              const TeamMember& member) {
  static thread_local FewRows prepared;
  const std::ptrdiff_t width = padded_inputs(linear.inputs);
  prepared.prepare(linear, widened_rows(rows, count, linear.inputs), width, count);
  const Registers registers;
  SmallMGemm(linear, prepared, output).work(member);
}

template <typename Number>
void many_rows(const LinearWeights& linear, const Number* rows, const Columns& columns, const Output& output,
               const TeamMember& member) {
  columns.pack(member, [&](std::ptrdiff_t row, float* numbers) {
    const Number* from = rows + row * linear.inputs;
    for (std::ptrdiff_t i = 0; i < padded_inputs(linear.inputs); i += kLanes)
      store(numbers + i, load(from + i, linear.inputs - i));
  });
  member.barrier();
  const Registers registers;
  Gemm(linear, columns, output).work(member);
}

template <typename Number>
void gemm(const LinearWeights& linear, const Number* rows, Number* results, std::ptrdiff_t num_rows, int threads) {
  static thread_local Scratch<std::uint8_t> memory;
  const std::ptrdiff_t size = rounded_up(parts(num_rows, parts(num_rows, kMaxRows)), 32);
  for (std::ptrdiff_t first = 0; first < num_rows; first += size) {
    const std::ptrdiff_t count = std::min(size, num_rows - first);
    const Number* some = rows + first * linear.inputs;
    const Output output(results + first * linear.outputs, linear.outputs);
    if (count <= kFewRows) {
      as_team(threads, [&](const TeamMember& member) { few_rows(linear, some, count, output, member); });
    } else {
      const Columns columns(memory, linear, count, std::is_same_v<Number, Bfloat16>);
      as_team(threads, [&](const TeamMember& member) { many_rows(linear, some, columns, output, member); });
    }
  }
}

template <typename Number>
void decode(const Model& model, const Tokens<Number>& tokens, const Number* embeds, Result result, Number* results,
            int threads) {
  const Pass<Number> pass(model, tokens, embeds, result);
  as_team(threads, [&](const TeamMember& member) {
    const Registers registers;
    pass.layers(member);
    if (result == kLogits) pass.head(member, results);
  });
  if (result == kLastHidden) pass.last(results);
}

} // namespace

FASTVLM_INTERFACE_BEGIN

#if defined(__AMX_TILE__)
// 1 if this process may use tile registers; the other functions here need it.
int FASTVLM_NAME(may_use_tiles)() { return may_use_tiles() ? 1 : 0; }
#endif

// (num_rows, inputs) -> (num_rows, outputs).
void FASTVLM_NAME(gemm)(const LinearWeights* linear, const void* rows, void* results, std::ptrdiff_t num_rows, int dtype,
                        int threads) {
#if !defined(__AMX_TILE__)
  if (dtype == kFloat32)
    return gemm(*linear, static_cast<const float*>(rows), static_cast<float*>(results), num_rows, threads);
#endif
  gemm(*linear, static_cast<const Bfloat16*>(rows), static_cast<Bfloat16*>(results), num_rows, threads);
}

// `count` new tokens, at most kMaxRows, through all layers: consecutive ones of one slot, or any of any slot. Their keys
// and values are put into the cache, at their positions; `embeds` is (count, width). `result`: the logits (count,
// vocabulary), or the last token's hidden state (width,).
void FASTVLM_NAME(decode)(const Model* model, const void* embeds, const std::int64_t* slots,
                          const std::int64_t* positions, std::ptrdiff_t count, int are_consecutive, const void* cos,
                          const void* sin, int result, void* results, int dtype, int threads) {
  const auto call = [&](auto number) {
    using Number = decltype(number);
    const Tokens<Number> tokens{count, are_consecutive != 0, slots, positions, static_cast<const Number*>(cos),
                                static_cast<const Number*>(sin)};
    decode(*model, tokens, static_cast<const Number*>(embeds), static_cast<Result>(result),
           static_cast<Number*>(results), threads);
  };
#if !defined(__AMX_TILE__)
  if (dtype == kFloat32) return call(float{});
#endif
  call(Bfloat16{});
}

FASTVLM_INTERFACE_END
