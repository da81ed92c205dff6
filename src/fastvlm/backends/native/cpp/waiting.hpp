// How threads wait for each other: they spin for a moment, because most waits are shorter than going to sleep, and then
// sleep, so that the awaited thread, or another program, can have their core.

#pragma once

#include <pthread.h>

#include <atomic>

#include "vectors/vectors.hpp"

namespace fastvlm::FASTVLM_LEVEL {

// A number that one thread at a time sets and others wait for.
class Signal {
 public:
  unsigned value() const { return number_.load(std::memory_order_acquire); }

  // Returns once the number is no longer `old`.
  void wait(unsigned old) {
    for (int spins = 0; spins < kSpins; ++spins) {
      if (value() != old) return;
      pause();
    }
    pthread_mutex_lock(&mutex_);
    sleepers_.fetch_add(1); // then reads the number; `set` changes the number, then reads this: one of both sees the other
    while (number_.load() == old) pthread_cond_wait(&changed_, &mutex_);
    sleepers_.fetch_sub(1);
    pthread_mutex_unlock(&mutex_);
  }

  void set(unsigned number) {
    number_.store(number);
    if (!sleepers_.load()) return;
    pthread_mutex_lock(&mutex_);
    pthread_cond_broadcast(&changed_);
    pthread_mutex_unlock(&mutex_);
  }

 private:
  static constexpr int kSpins = 4000; // a tenth of a millisecond
  alignas(64) std::atomic<unsigned> number_{0};
  std::atomic<int> sleepers_{0};
  pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t changed_ = PTHREAD_COND_INITIALIZER;
};

} // namespace fastvlm::FASTVLM_LEVEL
