// Scratch memory that a thread keeps between calls, because fresh memory from the system is slower than its use.

#pragma once

#include <cstddef>
#include <cstdlib>

namespace fastvlm::FASTVLM_LEVEL {

constexpr std::ptrdiff_t kCacheLine = 64; // bytes

inline std::ptrdiff_t parts(std::ptrdiff_t whole, std::ptrdiff_t size) { return (whole + size - 1) / size; }
inline std::ptrdiff_t rounded_up(std::ptrdiff_t count, std::ptrdiff_t unit) { return (count + unit - 1) / unit * unit; }

// To be declared `static thread_local`. Numbers are aligned to pages; what was there before is lost when it grows.
template <typename Number>
class Scratch {
 public:
  Scratch() = default;
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  Number* at_least(std::ptrdiff_t count) {
    if (count > count_) {
      std::free(data_);
      const auto bytes = static_cast<std::size_t>(rounded_up(count * sizeof(Number), 4096));
      data_ = static_cast<Number*>(std::aligned_alloc(4096, bytes));
      if (!data_) std::abort();
      count_ = count;
    }
    return data_;
  }
  Number* get() { return data_; }

 private:
  Number* data_ = nullptr;
  std::ptrdiff_t count_ = 0;
};

} // namespace fastvlm::FASTVLM_LEVEL
