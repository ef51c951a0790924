// Threads: how work is shared out, and barriers that behave on a busy machine.
//
// No inclusion guard: see vector.h.

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

// Calls body(worker, workers) on up to `threads` workers. All meet at our barrier before OpenMP's closes the region.
template <class Body>
static void in_parallel(int threads, const Body& body) {
  Barrier end;
  (void)threads;
#if defined(_OPENMP)
#pragma omp parallel num_threads(threads)
  {
    body(int64_t(omp_get_thread_num()), int64_t(omp_get_num_threads()));
    end.wait(omp_get_num_threads());
  }
#else
  body(int64_t{0}, int64_t{1});
#endif
}
