// Threads that walk through the phases of a computation together.
//
// One parallel region of OpenMP holds hundreds of phases, each of them small tasks. A thread has its own
// share of them, one behind the other, so that what it left in its caches in the phase before is what it
// reads in the next; then it takes from the others. A phase is over when its tasks are done, not when all
// threads have come: one whose core another program has got misses phases, and nobody waits for it.

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
  explicit Team(int most) : taken_(most), phases_(most) {}

  int size() const { return size_; }
  void set_size(int size) { size_ = size; }  // before the first phase, at most what it was made for

  // Every thread of the team calls it with the same `count`; work(i) runs once for each i < count,
  // and all of it is done when any call returns.
  template <typename Work>
  void run(int64_t count, Work work) {
    if (size_ == 1 || count == 0) {
      for (int64_t i = 0; i < count; ++i) work(i);
      return;
    }
    const int thread = omp_get_thread_num();
    const uint32_t phase = ++phases_[thread].number;
    if (completed_.load(std::memory_order_acquire) >= phase) return;  // without this thread
    int64_t num_done = 0;
    for (int i = 0; i < size_; ++i) {
      const int owner = (thread + i) % size_;
      const int64_t begin = count * owner / size_, end = count * (owner + 1) / size_;
      for (int64_t task; (task = begin + take(owner, phase)) < end; ++num_done) work(task);
    }
    if (num_done > 0 && done_.fetch_add(num_done, std::memory_order_acq_rel) + num_done == count) {
      done_.store(0, std::memory_order_relaxed);
      completed_.store(phase, std::memory_order_release);
      return;
    }
    wait(phase);
  }

 private:
  static constexpr int kSpins = 4000;
  static constexpr int64_t kNone = int64_t{1} << 40;  // more than any number of tasks

  // The next task of an owner's share; past its end, or kNone, when there is none.
  int64_t take(int owner, uint32_t phase) {
    std::atomic<uint64_t>& taken = taken_[owner].phase_and_count;
    uint64_t known = taken.load(std::memory_order_relaxed);
    for (;;) {
      const uint32_t known_phase = static_cast<uint32_t>(known >> 32);
      if (known_phase > phase) return kNone;  // the others have gone on
      const uint64_t count = known_phase < phase ? 0 : known & 0xffffffff;
      const uint64_t next = uint64_t{phase} << 32 | (count + 1);
      if (taken.compare_exchange_weak(known, next, std::memory_order_relaxed)) {
        return static_cast<int64_t>(count);
      }
    }
  }

  void wait(uint32_t phase) {
    for (int i = 0; completed_.load(std::memory_order_acquire) < phase; ++i) {
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
    std::atomic<uint64_t> phase_and_count{0};  // of the newest phase that anybody took from
  };
  struct alignas(64) Phase {
    uint32_t number = 0;  // that the thread is in, from 1
  };

  int size_ = 1;
  std::vector<Taken> taken_;   // of each thread's share
  std::vector<Phase> phases_;  // of each thread
  alignas(64) std::atomic<int64_t> done_{0};  // tasks of the phase that is under way
  alignas(64) std::atomic<uint32_t> completed_{0};
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
