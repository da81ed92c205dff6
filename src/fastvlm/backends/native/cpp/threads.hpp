// Uses torch's threads through the OpenMP library that it has loaded, because a second pool would compete with them.

#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstddef>

namespace fastvlm::FASTVLM_LEVEL {

using OpenMpParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

inline OpenMpParallel openmp_parallel() {
  static const auto found = reinterpret_cast<OpenMpParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return found;
}

// Calls work(0) ... work(count - 1), each once, on up to `threads` threads.
template <typename Work>
void in_parallel(std::size_t count, int threads, const Work& work) {
  struct Shared {
    const Work& work;
    std::size_t count;
    std::atomic<std::size_t> next;
  } shared{work, count, {0}};
  const auto drain = [](void* data) {
    auto& all = *static_cast<Shared*>(data);
    for (std::size_t i = all.next++; i < all.count; i = all.next++) all.work(i);
  };
  const auto wanted = static_cast<unsigned>(std::min<std::size_t>(count, threads));
  if (wanted > 1 && openmp_parallel()) {
    openmp_parallel()(drain, &shared, wanted, 0);
  } else {
    drain(&shared);
  }
}

} // namespace fastvlm::FASTVLM_LEVEL
