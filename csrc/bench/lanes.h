// Floats per vector of the processor that a program of this folder is built for.
#pragma once

#if defined(__AVX512F__)
#define CPK_LANES 16
#elif defined(__AVX2__)
#define CPK_LANES 8
#else
#define CPK_LANES 4
#endif
