// Threads: how work is shared out, barriers that behave on a busy machine, and stopping early.
#pragma once

#include <cstdint>
#include <ctime>

#include <sched.h>

#if defined(CPK_STD_THREADS)
#include <thread>
#include <vector>
#elif defined(_OPENMP)
#include <omp.h>
#endif

#include "kernels.h"
#include "target.h"

namespace cplearn::CPK_TARGET {

// The share of worker `worker` of `workers` in `count` things.
struct Share {
  int64_t begin, end;
  Share(int64_t count, int64_t worker, int64_t workers)
      : begin(count * worker / workers), end(count * (worker + 1) / workers) {}
};

// A barrier that spins briefly and then gives the processor away. OpenMP's own spins for far longer, which
// starves the worker it waits for as soon as another process (a data loader) wants one of the cores.
class Barrier {
 public:
  void wait(int64_t workers) {
    if (workers == 1) return;
    const int64_t generation = __atomic_load_n(&generation_, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&arrived_, 1, __ATOMIC_ACQ_REL) == workers) {
      __atomic_store_n(&arrived_, 0, __ATOMIC_RELAXED);
      __atomic_store_n(&generation_, generation + 1, __ATOMIC_RELEASE);
      return;
    }
    for (int spins = 0; __atomic_load_n(&generation_, __ATOMIC_ACQUIRE) == generation; ++spins) {
      if (spins < kSpins) pause();
      else sched_yield();
    }
  }

 private:
  static constexpr int kSpins = 2000;
  static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#endif
  }
  alignas(64) int64_t arrived_ = 0;
  alignas(64) int64_t generation_ = 0;
};

// Calls body(worker, workers) on up to `threads` workers, worker 0 on the calling thread. All meet at our barrier
// before OpenMP's closes the region. The thread sanitizer does not understand OpenMP's runtime: its build has threads
// of its own.
template <class Body>
static void in_parallel(int threads, const Body& body) {
  Barrier end;
#if defined(CPK_STD_THREADS)
  std::vector<std::thread> others;
  for (int64_t worker = 1; worker < threads; ++worker) others.emplace_back([&, worker] { body(worker, threads); });
  body(int64_t{0}, int64_t{threads});
  for (std::thread& other : others) other.join();
#elif defined(_OPENMP)
#pragma omp parallel num_threads(threads)
  {
    body(int64_t(omp_get_thread_num()), int64_t(omp_get_num_threads()));
    end.wait(omp_get_num_threads());
  }
#else
  (void)threads;
  body(int64_t{0}, int64_t{1});
#endif
}

// Asks `run.interrupted` now and then, and lets all workers leave their loops at the same round.
class Interruption {
 public:
  explicit Interruption(const Run& run) : ask_(run.interrupted), asked_(seconds()) {}

  // Whether to leave before round `round`. To be called by every worker at the start of each round; what worker 0
  // learns in a round holds from the next one on, so that workers which meet at a barrier in every round leave
  // together.
  bool before(int64_t worker, int64_t round) {
    const bool leave = round >= __atomic_load_n(&last_, __ATOMIC_ACQUIRE);
    if (worker == 0 && !leave && ask_ != nullptr) {
      const double now = seconds();
      if (now - asked_ > 0.1) {
        asked_ = now;
        if (ask_()) __atomic_store_n(&last_, round + 1, __ATOMIC_RELEASE);
      }
    }
    return leave;
  }

  // To be called after the parallel region.
  void throw_if_interrupted() const {
    if (last_ != INT64_MAX) throw Interrupted();
  }

 private:
  static double seconds() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return double(now.tv_sec) + 1e-9 * double(now.tv_nsec);
  }

  bool (*const ask_)();
  double asked_;
  int64_t last_ = INT64_MAX;
};

}  // namespace cplearn::CPK_TARGET
