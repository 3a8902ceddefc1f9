// Threads that walk through the phases of a computation together.
//
// One parallel region of OpenMP holds hundreds of phases, and between them stands a barrier that
// costs a fraction of a microsecond while all threads run. A phase is small tasks: a thread has its own
// share of them, one behind the other, so that what it left in its caches in the phase before is
// what it reads in the next; then it takes from the others, since another program may hold a core.

#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include <omp.h>
#include <sched.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

class Team {
 public:
  explicit Team(int most) : taken_(most) {}

  int size() const { return size_; }
  void set_size(int size) { size_ = size; }  // before the first phase, at most what it was made for

  // Every thread of the team calls it with the same `count`; work(i) runs once for each i < count,
  // and all of it is done when any call returns.
  template <typename Work>
  void run(int64_t count, Work work) {
    if (size_ == 1) {
      for (int64_t i = 0; i < count; ++i) work(i);
      return;
    }
    const int thread = omp_get_thread_num();
    for (int i = 0; i < size_; ++i) {
      const int owner = (thread + i) % size_;
      const int64_t end = count * (owner + 1) / size_;
      for (;;) {
        const int64_t task = count * owner / size_ +
                             taken_[owner].count.fetch_add(1, std::memory_order_relaxed);
        if (task >= end) break;
        work(task);
      }
    }
    wait();
  }

 private:
  static constexpr int kSpins = 4000;

  void wait() {
    const int generation = generation_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      for (auto& taken : taken_) taken.count.store(0, std::memory_order_relaxed);
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

  struct alignas(64) Taken {
    std::atomic<int64_t> count{0};
  };

  int size_ = 1;
  std::vector<Taken> taken_;  // of each thread's share of the phase
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> generation_{0};
};

// Runs work(team, thread) on all threads that OpenMP has.
template <typename Work>
void with_team(Work work) {
  Team team(omp_get_max_threads());
#pragma omp parallel
  {
#pragma omp single
    team.set_size(omp_get_num_threads());
    work(team, omp_get_thread_num());
  }
}
