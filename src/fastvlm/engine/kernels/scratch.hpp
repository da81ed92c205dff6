// Memory that a thread keeps between calls: fresh memory from the system costs more than what is computed in it.

#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

namespace fastvlm {

// At least `count` numbers, aligned to a cache line; `Slot` tells apart what is needed at the same time.
template <typename Number, int Slot>
Number* scratch(std::size_t count) {
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  thread_local std::unique_ptr<void, Free> memory;
  thread_local std::size_t capacity = 0;
  const std::size_t bytes = (count * sizeof(Number) + 4095) / 4096 * 4096;
  if (bytes > capacity) {
    memory.reset(std::aligned_alloc(4096, bytes));
    if (!memory) throw std::bad_alloc();
    capacity = bytes;
  }
  return static_cast<Number*>(memory.get());
}

} // namespace fastvlm
