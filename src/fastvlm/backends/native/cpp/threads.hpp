// Several threads for one job: torch's, through the OpenMP library that it has loaded, because a second pool would compete
// with them; own ones where that library has no GOMP_parallel.

#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstddef>

#include "thread_pool.hpp"

namespace fastvlm::FASTVLM_LEVEL {

// GNU's interface of OpenMP; both are null if one is missing.
struct OpenMp {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
  int (*team_size)() = nullptr;

  static const OpenMp& loaded() {
    static const OpenMp found = [] {
      OpenMp functions;
      functions.parallel = reinterpret_cast<decltype(parallel)>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
      functions.team_size = reinterpret_cast<decltype(team_size)>(dlsym(RTLD_DEFAULT, "omp_get_num_threads"));
      return functions.parallel && functions.team_size ? functions : OpenMp{};
    }();
    return found;
  }
};

// True if several threads can be used.
inline bool has_threads() { return OpenMp::loaded().parallel || ThreadPool::instance().has_threads(); }

// Calls work(data, size) in each of `size` threads, at most `threads`.
inline void run_team(int threads, TeamWork work, void* data) {
  struct Job {
    TeamWork work;
    void* data;
  } job{work, data};
  if (threads < 2) return work(data, 1);
  if (!OpenMp::loaded().parallel) return ThreadPool::instance().run(threads, work, data);
  const auto run = [](void* shared) {
    const Job& mine = *static_cast<const Job*>(shared);
    mine.work(mine.data, OpenMp::loaded().team_size());
  };
  OpenMp::loaded().parallel(run, &job, static_cast<unsigned>(threads), 0);
}

// Calls work(0) ... work(count - 1), each once, on up to `threads` threads.
template <typename Work>
void in_parallel(std::size_t count, int threads, const Work& work) {
  struct Shared {
    const Work& work;
    std::size_t count;
    std::atomic<std::size_t> next;
  } shared{work, count, {0}};
  const auto drain = [](void* data, int) {
    auto& all = *static_cast<Shared*>(data);
    for (std::size_t i = all.next++; i < all.count; i = all.next++) all.work(i);
  };
  run_team(static_cast<int>(std::min(count, static_cast<std::size_t>(std::max(threads, 1)))), drain, &shared);
}

} // namespace fastvlm::FASTVLM_LEVEL
