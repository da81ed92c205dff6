// Names and number types of the C interface; native/kernels.py calls it.

#pragma once

#define FASTVLM_JOINED(level, name) fastvlm_##level##_##name
#define FASTVLM_OF_LEVEL(level, name) FASTVLM_JOINED(level, name)
#define FASTVLM_NAME(name) FASTVLM_OF_LEVEL(FASTVLM_LEVEL, name)
#define FASTVLM_INTERFACE_BEGIN _Pragma("GCC visibility push(default)") extern "C" {
#define FASTVLM_INTERFACE_END } _Pragma("GCC visibility pop")

namespace fastvlm::FASTVLM_LEVEL {

enum Dtype : int { kBfloat16Numbers = 0, kFloat32 = 1 };

// What a linear layer does with its results: with kAdded they are added to what is there, with kHeads they are written as
// (outputs / 32, rows, 32).
enum Epilogue : int { kPlain = 0, kGelu = 1, kAdded = 2, kHeads = 3 };

} // namespace fastvlm::FASTVLM_LEVEL
