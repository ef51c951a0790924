// The instruction set that the kernels are compiled for: what every header of them begins with.
//
// All of them open the namespace cplearn::CPK_TARGET for what they define, and use no template of the standard library:
// target.cpp is compiled once per instruction set, and of an inline function that two sets have under one name the
// linker keeps one, perhaps the one that this processor cannot run. The build names the set and its lanes, rows of the
// batch per vector. Where it does not (an editor that opens a header, a program of csrc/bench), they follow from the
// compiler's flags.
#pragma once

#if defined(__x86_64__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // both are what GCC's own AVX-512 header does on purpose
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#if !defined(CPK_TARGET)
#define CPK_TARGET host
#if defined(__AVX512F__)
#define CPK_LANES 16
#elif defined(__AVX2__)
#define CPK_LANES 8
#else
#define CPK_LANES 4
#endif
#endif

#define CPK_INLINE inline __attribute__((always_inline))
