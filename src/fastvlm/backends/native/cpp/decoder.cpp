// C interface of the decoder's kernels, for CPUs with AMX.

#if defined(__AMX_TILE__)

#include <cstddef>

#include "decoder_pass.hpp"
#include "amx/gemm.hpp"
#include "amx/gemm_small_m.hpp"
#include "interface.hpp"
#include "team.hpp"

using namespace fastvlm::FASTVLM_LEVEL;

namespace {

// A row of bfloat16 with zeros behind it.
struct Row {
  const Bfloat16* numbers;
  std::ptrdiff_t count;
  __m256i lanes(std::ptrdiff_t i) const {
    return _mm256_maskz_loadu_epi16(i < count ? first_floats(count - i) : __mmask16{0}, numbers + i);
  }
};

// Few rows as float32, by each thread for itself.
void few_rows(const LinearWeights& linear, const Bfloat16* rows, std::ptrdiff_t num_rows, const Output& output,
              const TeamMember& member) {
  static thread_local FewRows prepared;
  static thread_local Scratch<float> floats;
  const std::ptrdiff_t width = padded_inputs(linear.inputs);
  float* wide = floats.at_least(num_rows * width);
  for (std::ptrdiff_t row = 0; row < num_rows; ++row) {
    const Row narrow{rows + row * linear.inputs, linear.inputs};
    for (std::ptrdiff_t i = 0; i < width; i += kLanes)
      _mm512_storeu_ps(wide + row * width + i, widened(narrow.lanes(i)));
  }
  prepared.prepare(linear, wide, width, num_rows);
  const AmxTileConfig tiles;
  SmallMGemm(linear, prepared, output).work(member);
}

void many_rows(const LinearWeights& linear, const Bfloat16* rows, const Columns& columns, const Output& output,
               const TeamMember& member) {
  columns.pack(member, [&](std::ptrdiff_t row, Bfloat16* numbers) {
    const Row narrow{rows + row * linear.inputs, linear.inputs};
    for (std::ptrdiff_t i = 0; i < padded_inputs(linear.inputs); i += kLanes)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(numbers + i), narrow.lanes(i));
  });
  member.barrier();
  const AmxTileConfig tiles;
  Gemm(linear, columns, output).work(member);
}

} // namespace

FASTVLM_INTERFACE_BEGIN

// 1 if this process may use tile registers; the other functions here need it.
int FASTVLM_NAME(may_use_tiles)() { return may_use_tiles() ? 1 : 0; }

// (num_rows, inputs) -> (num_rows, outputs), contiguous bfloat16.
void FASTVLM_NAME(gemm)(const LinearWeights* linear, const Bfloat16* rows, Bfloat16* results, std::ptrdiff_t num_rows,
                     int threads) {
  static thread_local Scratch<std::uint8_t> memory;
  const std::ptrdiff_t parts = (num_rows + kMaxRows - 1) / kMaxRows;
  const std::ptrdiff_t size = rounded_up((num_rows + parts - 1) / parts, 2 * kTileRows);
  for (std::ptrdiff_t first = 0; first < num_rows; first += size) {
    const std::ptrdiff_t count = std::min(size, num_rows - first);
    const Bfloat16* some = rows + first * linear->inputs;
    const Output output{nullptr, results + first * linear->outputs, linear->outputs, false};
    if (count <= kFewRows) {
      as_team(threads, [&](const TeamMember& member) { few_rows(*linear, some, count, output, member); });
    } else {
      const Columns columns(memory, count, linear->inputs);
      as_team(threads, [&](const TeamMember& member) { many_rows(*linear, some, columns, output, member); });
    }
  }
}

// `count` new tokens, at most kMaxRows, through all layers: they follow one another in one slot, or each is of another.
// Their keys and values are put into the cache, at their positions; `embeds` is (count, width). Of a prompt the last
// token's hidden state (width,) is given, else the logits (count, vocabulary).
void FASTVLM_NAME(decode)(const Model* model, const Bfloat16* embeds, const std::int64_t* slots,
                    const std::int64_t* positions, std::ptrdiff_t count, int are_a_prompt, const Bfloat16* cos,
                    const Bfloat16* sin, Bfloat16* results, int threads) {
  const Tokens tokens{count, are_a_prompt != 0, slots, positions, cos, sin};
  const Pass pass(*model, tokens, embeds);
  as_team(threads, [&](const TeamMember& member) {
    const AmxTileConfig tiles;
    pass.layers(member);
    if (!tokens.are_a_prompt) pass.head(member, results);
  });
  if (tokens.are_a_prompt) pass.last(results);
}

FASTVLM_INTERFACE_END

#endif
