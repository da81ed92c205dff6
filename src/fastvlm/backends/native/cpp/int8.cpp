// C interface of linear layers in 8 bits; see encoder.cpp for what holds for all functions.

#include <cstddef>

#include "int8_linear.hpp"
#include "interface.hpp"

using namespace fastvlm::FASTVLM_LEVEL;

FASTVLM_INTERFACE_BEGIN

// Outputs of a panel of weights.
int FASTVLM_NAME(int8_panel_outputs)() { return kTileOutputs; }

// Inputs of a weight are padded to a multiple of this.
int FASTVLM_NAME(int8_input_unit)() { return static_cast<int>(Int8Layer::kInputUnit); }

// (rows, inputs) -> (rows, outputs), written to `out` or added.
void FASTVLM_NAME(int8_linear)(const void* x, void* out, std::ptrdiff_t rows, const void* layer, int is_added, int dtype,
                               int threads) {
  const auto& of = *static_cast<const Int8Layer*>(layer);
  if (dtype == kFloat32) int8_linear(static_cast<const float*>(x), static_cast<float*>(out), rows, of, is_added != 0, threads);
  else int8_linear(static_cast<const Bfloat16*>(x), static_cast<Bfloat16*>(out), rows, of, is_added != 0, threads);
}

// Adds narrow(gelu(widen(x))) to `out`, both (rows, channels).
void FASTVLM_NAME(int8_ffn)(const void* x, void* out, std::ptrdiff_t rows, const void* widen, const void* narrow, int dtype,
                            int threads) {
  const auto &wide = *static_cast<const Int8Layer*>(widen), &thin = *static_cast<const Int8Layer*>(narrow);
  if (dtype == kFloat32) int8_ffn(static_cast<const float*>(x), static_cast<float*>(out), rows, wide, thin, threads);
  else int8_ffn(static_cast<const Bfloat16*>(x), static_cast<Bfloat16*>(out), rows, wide, thin, threads);
}

FASTVLM_INTERFACE_END
