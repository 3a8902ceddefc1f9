// Threads that walk through the phases of a computation together.
//
// One parallel region of OpenMP holds hundreds of phases, and between them stands a barrier that
// costs a fraction of a microsecond while all threads run. Work of a phase is handed out in small
// tasks to whoever is free, since another program may take a core away at any time.

#pragma once

#include <atomic>
#include <cstdint>

#include <omp.h>
#include <sched.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

class Team {
 public:
  int size() const { return size_; }
  void set_size(int size) { size_ = size; }  // before the first phase

  // Every thread of the team calls it with the same `count`; work(i) runs once for each i < count,
  // and all of it is done when any call returns.
  template <typename Work>
  void run(int64_t count, Work work) {
    if (size_ == 1) {
      for (int64_t i = 0; i < count; ++i) work(i);
      return;
    }
    for (;;) {
      const int64_t i = next_.fetch_add(1, std::memory_order_relaxed);
      if (i >= count) break;
      work(i);
    }
    wait();
  }

 private:
  static constexpr int kSpins = 4000;

  void wait() {
    const int generation = generation_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      next_.store(0, std::memory_order_relaxed);
      generation_.store(generation + 1, std::memory_order_release);
      return;
    }
    for (int i = 0; generation_.load(std::memory_order_acquire) == generation; ++i) {
      if (i >= kSpins) {
        sched_yield();
      } else {
#if defined(__x86_64__)
        _mm_pause();
#endif
      }
    }
  }

  int size_ = 1;
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> generation_{0};
};

// Runs work(team, thread) on all threads that OpenMP has.
template <typename Work>
void with_team(Work work) {
  Team team;
#pragma omp parallel
  {
#pragma omp single
    team.set_size(omp_get_num_threads());
    work(team, omp_get_thread_num());
  }
}
