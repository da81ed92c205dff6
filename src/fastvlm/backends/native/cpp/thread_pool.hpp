// Own threads, for processes that have no OpenMP library with GOMP_parallel, such as those of macOS.
//
// POSIX threads, not std::thread: its templates would be compiled once for each level under the same names.

#pragma once

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <new>

#include "waiting.hpp"

namespace fastvlm::FASTVLM_LEVEL {

using TeamWork = void (*)(void* data, int size); // called in each of `size` threads

class ThreadPool {
 public:
  static ThreadPool& instance() {
    static ThreadPool* const pool = [] {
      pthread_atfork(nullptr, nullptr, [] { new (memory()) ThreadPool; }); // a child process has none of these threads
      return new (memory()) ThreadPool;
    }();
    static const JoinAtExit at_exit;
    return *pool;
  }

  // Calls `work` in up to `threads` threads, this one among them; in this one alone while another thread uses the pool.
  void run(int threads, TeamWork work, void* data) {
    if (threads < 2 || pthread_mutex_trylock(&in_use_)) return work(data, 1);
    const int workers = start(std::min(threads, kMaxThreads) - 1);
    work_ = work;
    data_ = data;
    unfinished_.store(workers);
    const unsigned finished = finished_.value(), round = begun_.value() / kRound + 1;
    begun_.set(round * kRound + static_cast<unsigned>(workers));
    work(data, workers + 1);
    if (workers) finished_.wait(finished);
    pthread_mutex_unlock(&in_use_);
  }

  // True if the system gives at least one thread.
  bool has_threads() {
    if (pthread_mutex_trylock(&in_use_)) return true;
    const bool is_started = start(1) > 0;
    pthread_mutex_unlock(&in_use_);
    return is_started;
  }

 private:
  static constexpr int kMaxThreads = 256;
  static constexpr unsigned kRound = kMaxThreads; // `begun_` is the round times this, plus the number of workers in it
  static constexpr std::size_t kStackBytes = std::size_t{8} << 20; // as Linux gives; macOS gives half a megabyte

  struct Worker {
    ThreadPool* pool;
    int index;
    unsigned begun;
    pthread_t thread;
  };
  struct JoinAtExit {
    ~JoinAtExit() { instance().stop(); }
  };

  ThreadPool() = default;

  static void* memory() {
    alignas(ThreadPool) static unsigned char bytes[sizeof(ThreadPool)];
    return bytes;
  }

  // Makes workers until there are `wanted`, or the system gives no more; returns how many of them there are.
  int start(int wanted) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, kStackBytes);
    while (num_workers_ < wanted) {
      Worker& worker = workers_[num_workers_];
      worker = {this, num_workers_, begun_.value(), {}};
      if (pthread_create(&worker.thread, &attributes, &work_in_rounds, &worker)) break;
      ++num_workers_;
    }
    pthread_attr_destroy(&attributes);
    return std::min(wanted, num_workers_);
  }

  // `run` changes the work only after all workers of the last round are done; the others do not look at it.
  static void* work_in_rounds(void* data) {
    const auto& worker = *static_cast<const Worker*>(data);
    ThreadPool& pool = *worker.pool;
    for (unsigned begun = worker.begun;;) {
      pool.begun_.wait(begun);
      begun = pool.begun_.value();
      if (pool.is_stopping_) return nullptr;
      const int workers = static_cast<int>(begun % kRound);
      if (worker.index >= workers) continue;
      pool.work_(pool.data_, workers + 1);
      if (pool.unfinished_.fetch_sub(1) == 1) pool.finished_.set(pool.finished_.value() + 1);
    }
  }

  void stop() {
    pthread_mutex_lock(&in_use_); // and keeps it: what comes later is done by its caller alone
    is_stopping_ = true;
    begun_.set((begun_.value() / kRound + 1) * kRound);
    for (int i = 0; i < num_workers_; ++i) pthread_join(workers_[i].thread, nullptr);
  }

  pthread_mutex_t in_use_ = PTHREAD_MUTEX_INITIALIZER;
  Signal begun_, finished_;
  TeamWork work_ = nullptr;
  void* data_ = nullptr;
  std::atomic<int> unfinished_{0};
  std::atomic<bool> is_stopping_{false};
  int num_workers_ = 0;
  Worker workers_[kMaxThreads];
};

} // namespace fastvlm::FASTVLM_LEVEL
