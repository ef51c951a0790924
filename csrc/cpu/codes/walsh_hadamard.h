// The fast Walsh–Hadamard transform of kLanes rows at once, fused with what makes its input and what uses its output.
//
// Data is [F][kLanes]: coordinate by coordinate, one row per lane, so a butterfly is an add and a subtract of whole
// vectors and nothing is ever shuffled. A transform of F = 2^m goes through memory once per radix pass. The first pass
// takes its input from a Source, the last hands its output to a Sink while it is still in registers:
//
//   Vec  source(int64_t k)                        input coordinate k
//   void source.group_done(int64_t i)             called after every few coordinates, i = 0, 1, 2, …
//   void sink(int64_t r, Vec (&values)[R])        outputs r … r + R - 1, in ascending order of r
#pragma once

#include <cstdint>

#include "../vector.h"

namespace cplearn::CPK_TARGET {

// Source of walsh_hadamard: a plain array.
struct PlainTile {
  const float* tile;
  CPK_INLINE Vec operator()(int64_t k) const { return load(tile + k * kLanes); }
  CPK_INLINE void group_done(int64_t) const {}
};

// Registers bound the radix: 16 values and temporaries fit in the 32 registers of AVX-512, 8 in the 16 of the others.
constexpr int kLastLog2 = CPK_LANES == 16 ? 4 : 3;

template <int R>
CPK_INLINE void butterflies(Vec (&x)[R]) {
#pragma GCC unroll 4
  for (int half = R / 2; half > 0; half /= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      if ((i & half) == 0) {
        const Vec a = x[i], b = x[i + half];
        x[i] = a + b;
        x[i + half] = a - b;
      }
    }
  }
}

// First pass, stride F / R: reads the source, writes `out`.
template <int R, class Source>
CPK_INLINE void first_pass(Source& source, float* out, int64_t stride) {
  for (int64_t i = 0; i < stride; ++i) {
    Vec x[R];
#pragma GCC unroll 16
    for (int q = 0; q < R; ++q) x[q] = source(i + q * stride);
    source.group_done(i);
    butterflies(x);
#pragma GCC unroll 16
    for (int q = 0; q < R; ++q) store(out + (i + q * stride) * kLanes, x[q]);
  }
}

// A pass in place over `length` coordinates with the given stride.
template <int R>
CPK_INLINE void middle_pass(float* data, int64_t length, int64_t stride) {
  for (int64_t base = 0; base < length; base += R * stride) {
    for (int64_t i = base; i < base + stride; ++i) {
      Vec x[R];
#pragma GCC unroll 16
      for (int q = 0; q < R; ++q) x[q] = load(data + (i + q * stride) * kLanes);
      butterflies(x);
#pragma GCC unroll 16
      for (int q = 0; q < R; ++q) store(data + (i + q * stride) * kLanes, x[q]);
    }
  }
}

// Last pass, stride 1: reads coordinates `begin` … `begin + length - 1` of `data`, feeds the sink.
template <int R, class Sink>
CPK_INLINE void last_pass(const float* data, int64_t begin, int64_t length, Sink& sink) {
  for (int64_t r = begin; r < begin + length; r += R) {
    Vec x[R];
#pragma GCC unroll 16
    for (int q = 0; q < R; ++q) x[q] = load(data + (r + q) * kLanes);
    butterflies(x);
    sink(r, x);
  }
}

// A block so small that source, butterflies and sink meet in registers.
template <int R, class Source, class Sink>
CPK_INLINE void single_pass(Source& source, Sink& sink) {
  Vec x[R];
#pragma GCC unroll 16
  for (int q = 0; q < R; ++q) x[q] = source(q);
  source.group_done(0);
  butterflies(x);
  sink(0, x);
}

// How many bits the first of several passes takes: those in the middle take three or two each, the first what is left.
CPK_INLINE int first_bits(int log2_size) {
  const int remaining = log2_size - kLastLog2;
  return remaining % 3 == 0 ? 3 : remaining == 1 ? 1 : 2;
}

// Reads the source as a transform of F = 2^log2_size coordinates would, for what the source sums up on the way: the
// order decides the last bits.
template <class Source>
CPK_INLINE void only_read(int log2_size, Source& source) {
  const int64_t part = log2_size <= kLastLog2 ? 1 : (int64_t{1} << log2_size) >> first_bits(log2_size);
  const int64_t radix = (int64_t{1} << log2_size) / part;
  for (int64_t i = 0; i < part; ++i) {
    for (int64_t q = 0; q < radix; ++q) source(i + q * part);
    source.group_done(i);
  }
}

// Transform of F = 2^log2_size coordinates. `scratch` is [F][kLanes]; it may be the array that the sink writes, because
// a group of outputs is stored only after the same group was loaded, and the array that the source reads.
template <class Source, class Sink>
CPK_INLINE void walsh_hadamard(int log2_size, Source& source, Sink& sink, float* scratch) {
  if (log2_size <= kLastLog2) {
    switch (log2_size) {
      case 0: return single_pass<1>(source, sink);
      case 1: return single_pass<2>(source, sink);
      case 2: return single_pass<4>(source, sink);
      case 3: return single_pass<8>(source, sink);
#if CPK_LANES == 16
      case 4: return single_pass<16>(source, sink);
#endif
    }
    return;
  }
  constexpr int kLast = 1 << kLastLog2;
  const int64_t size = int64_t{1} << log2_size;
  const int first = first_bits(log2_size);
  const int64_t part = size >> first;
  switch (first) {
    case 1: first_pass<2>(source, scratch, part); break;
    case 2: first_pass<4>(source, scratch, part); break;
    default: first_pass<8>(source, scratch, part); break;
  }
  // Depth first: each part is small enough for the first-level cache, the whole is not.
  for (int64_t begin = 0; begin < size; begin += part) {
    int bits = log2_size - kLastLog2 - first;
    int64_t stride = part;
    while (bits > 0) {
      const int step = bits % 3 == 0 ? 3 : 2;
      stride >>= step;
      if (step == 3) middle_pass<8>(scratch + begin * kLanes, part, stride);
      else middle_pass<4>(scratch + begin * kLanes, part, stride);
      bits -= step;
    }
    last_pass<kLast>(scratch, begin, part, sink);
  }
}

}  // namespace cplearn::CPK_TARGET
