// The level's GEMMs: in tile registers where there are some.

#pragma once

#if defined(__AMX_TILE__)
#include "amx/gemm.hpp"
#include "amx/gemm_small_m.hpp"
#else
#include "gemm.hpp"
#include "gemm_small_m.hpp"
#endif

namespace fastvlm::FASTVLM_LEVEL {

#if defined(__AMX_TILE__)
using Registers = AmxTileConfig; // what a thread needs while it multiplies
#else
struct Registers {
  Registers() {} // nothing
};
#endif

} // namespace fastvlm::FASTVLM_LEVEL
