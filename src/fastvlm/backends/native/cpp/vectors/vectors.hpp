// Vector registers of the level that is being compiled: one set of names for every instruction set.
//
// FASTVLM_LEVEL is the level's name and its namespace, so that one library holds every level. The names of this layer are
// defined by each file of this folder:
//
//   Floats, Ints            a register of kLanes float32, or of integers
//   load, store             float32 or bfloat16 (widened, rounded to nearest even), whole or the first `count` numbers
//   broadcast, zeros, + - * /, multiply_add, subtract_product, smaller, larger, sum, largest ...
//   add_pairs               dot products of pairs of int16

#pragma once

#if defined(__AVX512F__)
#include "avx512.hpp"
#elif defined(__AVX2__)
#include "avx2.hpp"
#elif defined(__aarch64__)
#include "neon.hpp"
#else
#error "no vectors are written for this instruction set"
#endif

#ifdef __clang__
#define UNROLLED _Pragma("unroll")
#else
#define UNROLLED _Pragma("GCC unroll 32")
#endif
