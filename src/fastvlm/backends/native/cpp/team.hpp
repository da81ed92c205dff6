// A team of threads that runs in phases with a barrier between them.

#pragma once

#include <sched.h>

#include <atomic>
#include <cstddef>

#include "threads.hpp"
#include "vectors/vectors.hpp"

namespace fastvlm::FASTVLM_LEVEL {

// 0 if OpenMP's function is missing.
inline int openmp_team_size() {
  using Ask = int (*)();
  static const auto ask = reinterpret_cast<Ask>(dlsym(RTLD_DEFAULT, "omp_get_num_threads"));
  return ask ? ask() : 0;
}

// State shared by the threads of a team.
struct TeamState {
  alignas(64) std::atomic<std::ptrdiff_t> next{0};
  alignas(64) std::atomic<int> joined{0};
  std::atomic<int> arrived{0};
  alignas(64) std::atomic<unsigned> round{0};
};

// One thread of a team.
class TeamMember {
 public:
  TeamMember(TeamState& state, int size) : state_(state), index(state.joined++), size(size) {}

  // Claims the next piece of this phase: size, size + 1, ... Thread i starts with piece i without a claim.
  std::ptrdiff_t claim() const { return size + state_.next.fetch_add(1, std::memory_order_relaxed); }

  // Waits until all threads have called it, and resets the piece counter.
  void barrier() const {
    const unsigned round = state_.round.load(std::memory_order_acquire);
    if (state_.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
      state_.arrived.store(0, std::memory_order_relaxed);
      state_.next.store(0, std::memory_order_relaxed);
      state_.round.store(round + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; state_.round.load(std::memory_order_acquire) == round; ++spins) {
      if (spins < kSpins) {
        pause();
      } else {
        sched_yield(); // with more threads than cores, the awaited thread may need this core
      }
    }
  }

 private:
  static constexpr int kSpins = 4000;
  TeamState& state_;

 public:
  const int index, size;
};

// Calls work(member) in each thread of a team of at most `threads`.
template <typename Work>
void as_team(int threads, const Work& work) {
  struct Shared {
    const Work& work;
    TeamState state;
  } shared{work, {}};
  if (threads > 1 && openmp_parallel() && openmp_team_size()) {
    const auto join = [](void* data) {
      auto& all = *static_cast<Shared*>(data);
      all.work(TeamMember(all.state, openmp_team_size()));
    };
    openmp_parallel()(join, &shared, static_cast<unsigned>(threads), 0);
  } else {
    work(TeamMember(shared.state, 1));
  }
}

} // namespace fastvlm::FASTVLM_LEVEL
