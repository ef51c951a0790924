// How many vector additions, multiply-adds, loads and stores one core of this processor does, for the bounds in
// docs/performance.md. Prints a JSON line per operation: vectors per second, at the width the processor has.
#include <chrono>
#include <cstdint>
#include <cstdio>

#include "../cpu/vector.h"

namespace {

using cplearn::CPK_TARGET::Vec;

// Enough independent chains to hide the latency of an addition, few enough to stay in registers.
constexpr int kChains = CPK_LANES == 16 ? 24 : 12;
alignas(64) float memory[64 * CPK_LANES];  // in the first-level cache

// Keeps the compiler from merging, dropping or reordering what happens to `v`.
CPK_INLINE void opaque(Vec& v) { asm volatile("" : CPK_VECTOR_OPERAND(v)); }

template <int kFused>  // of every two operations: 0, 1 or 2 multiply-adds, the others additions
CPK_INLINE void arithmetic(Vec (&x)[kChains], Vec a, Vec b) {
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) {
    x[i] = i % 2 < kFused ? x[i] * a + b : x[i] + b;
    opaque(x[i]);
  }
}

CPK_INLINE void loads(Vec (&x)[kChains], Vec, Vec) {
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) {
    x[i] = *reinterpret_cast<const volatile Vec*>(memory + i * CPK_LANES);
  }
}

CPK_INLINE void stores(Vec (&x)[kChains], Vec, Vec) {
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) {
    *reinterpret_cast<volatile Vec*>(memory + i * CPK_LANES) = x[i];
  }
}

template <void (*kStep)(Vec (&)[kChains], Vec, Vec)>
void report(const char* name) {
  double best = 0;
  for (int turn = 0; turn < 9; ++turn) {
    Vec x[kChains], a = Vec{} + 0.5f, b = Vec{} + 1.0f;
    opaque(a), opaque(b);
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) x[i] = b;
    constexpr int64_t kSteps = 2000000;
    const auto began = std::chrono::steady_clock::now();
    for (int64_t step = 0; step < kSteps; ++step) kStep(x, a, b);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
#pragma GCC unroll 24
    for (int i = 0; i < kChains; ++i) opaque(x[i]);
    const double rate = double(kSteps) * kChains / seconds;
    best = rate > best ? rate : best;
  }
  printf("{\"operation\": \"%s\", \"lanes\": %d, \"vectors_per_second\": %.4g}\n", name, CPK_LANES, best);
}

}  // namespace

int main() {
  report<arithmetic<0>>("additions");
  report<arithmetic<2>>("multiply-adds");
  report<arithmetic<1>>("additions and multiply-adds, half each");
  report<loads>("loads");
  report<stores>("stores");
}
