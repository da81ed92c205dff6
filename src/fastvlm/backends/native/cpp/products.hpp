// What one step of a matrix product is made of, by number type: left numbers are broadcast, right ones are a vector of
// outputs, sums are float32 or int32.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "vectors/vectors.hpp"

namespace fastvlm::FASTVLM_LEVEL {

struct FloatProduct {
  using Left = float;
  using Right = float;
  using Sum = Floats;
  static constexpr int kDepth = 1; // inputs of a step
  static Sum none() { return zeros(); }
  static Sum left(const Left* at) { return broadcast(at); }
  static Sum right(const Right* at) { return load(at); }
  static Sum add(Sum sums, Sum left, Sum right) { return multiply_add(left, right, sums); }
};

// Right numbers are widened as they are read.
struct WidenedProduct : FloatProduct {
  using Right = Bfloat16;
  static Sum right(const Right* at) { return load(at); }
};

// The 32 bits at `at` in every lane.
inline Ints broadcast_word(const void* at) {
  std::int32_t word;
  std::memcpy(&word, at, sizeof word);
  return broadcast_int(word);
}

// Exact as long as no sum exceeds int32.
struct Int16Product {
  using Left = std::int16_t;
  using Right = std::int16_t;
  using Sum = Ints;
  static constexpr int kDepth = 2;
  static Sum none() { return no_ints(); }
  static Sum left(const Left* at) { return broadcast_word(at); }
  static Sum right(const Right* at) { return load_ints(at); }
  static Sum add(Sum sums, Sum left, Sum right) { return add_pairs(sums, left, right); }
};

// Unsigned times signed 8 bits. Exact as long as no sum exceeds int32, and, with AVX2 alone, no two neighboring products
// exceed int16.
struct Uint8Product {
  using Left = std::uint8_t;
  using Right = std::int8_t;
  using Sum = Ints;
  static constexpr int kDepth = 4;
  static Sum none() { return no_ints(); }
  static Sum left(const Left* at) { return broadcast_word(at); }
  static Sum right(const Right* at) { return load_ints(at); }
  static Sum add(Sum sums, Sum left, Sum right) { return add_quads(sums, left, right); }
};

#if defined(__AVX512BF16__)
struct Bfloat16Product {
  using Left = Bfloat16;
  using Right = Bfloat16;
  using Sum = Floats;
  static constexpr int kDepth = 2;
  static Sum none() { return zeros(); }
  static Ints left(const Left* at) { return broadcast_word(at); }
  static Ints right(const Right* at) { return load_ints(at); }
  static Sum add(Sum sums, Ints left, Ints right) { return add_bfloat16_pairs(sums, left, right); }
};
#endif

} // namespace fastvlm::FASTVLM_LEVEL
