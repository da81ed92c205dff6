// Names and numbers types of the C interface; native/kernels.py calls it.

#pragma once

#define FASTVLM_JOINED(level, name) fastvlm_##level##_##name
#define FASTVLM_OF_LEVEL(level, name) FASTVLM_JOINED(level, name)
#define FASTVLM_NAME(name) FASTVLM_OF_LEVEL(FASTVLM_LEVEL, name)
#define FASTVLM_INTERFACE_BEGIN _Pragma("GCC visibility push(default)") extern "C" {
#define FASTVLM_INTERFACE_END } _Pragma("GCC visibility pop")

namespace fastvlm::FASTVLM_LEVEL {

enum Dtype : int { kBfloat16Numbers = 0, kFloat32 = 1 };

} // namespace fastvlm::FASTVLM_LEVEL
