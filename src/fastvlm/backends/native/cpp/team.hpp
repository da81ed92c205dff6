// A team of threads that runs in phases with a barrier between them.

#pragma once

#include <atomic>
#include <cstddef>

#include "threads.hpp"
#include "waiting.hpp"

namespace fastvlm::FASTVLM_LEVEL {

// State shared by the threads of a team.
struct TeamState {
  alignas(64) std::atomic<std::ptrdiff_t> next{0};
  alignas(64) std::atomic<int> joined{0};
  std::atomic<int> arrived{0};
  Signal round;
};

// One thread of a team.
class TeamMember {
 public:
  TeamMember(TeamState& state, int size) : state_(state), index(state.joined++), size(size) {}

  // Claims the next piece of this phase: size, size + 1, ... Thread i starts with piece i without a claim.
  std::ptrdiff_t claim() const { return size + state_.next.fetch_add(1, std::memory_order_relaxed); }

  // Waits until all threads have called it, and resets the piece counter.
  void barrier() const {
    const unsigned round = state_.round.value();
    if (state_.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
      state_.arrived.store(0, std::memory_order_relaxed);
      state_.next.store(0, std::memory_order_relaxed);
      state_.round.set(round + 1);
      return;
    }
    state_.round.wait(round);
  }

 private:
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
  const auto join = [](void* data, int size) {
    auto& all = *static_cast<Shared*>(data);
    all.work(TeamMember(all.state, size));
  };
  run_team(threads, join, &shared);
}

} // namespace fastvlm::FASTVLM_LEVEL
