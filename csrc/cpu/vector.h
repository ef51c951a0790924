// Vectors of CPK_LANES floats, one row of the batch per lane, and the elementary functions on them.
//
// GCC/Clang vector extensions, so one source serves every instruction set; intrinsics only where the extensions have
// no operation for it.
#pragma once

#include <cstdint>
#include <cstring>

#include "target.h"

namespace cplearn::CPK_TARGET {

constexpr int kLanes = CPK_LANES;
typedef float Vec __attribute__((vector_size(4 * CPK_LANES)));
typedef float VecInMemory __attribute__((vector_size(4 * CPK_LANES), may_alias));
typedef int32_t VecInt __attribute__((vector_size(4 * CPK_LANES)));

// Half as many 64-bit integers; the generator's products need them.
constexpr int kWideLanes = CPK_LANES / 2;
typedef uint64_t VecWide __attribute__((vector_size(4 * CPK_LANES)));
typedef uint32_t VecNarrow __attribute__((vector_size(2 * CPK_LANES)));

CPK_INLINE Vec broadcast(float value) { return value - Vec{}; }
CPK_INLINE VecInt broadcast_int(int32_t value) { return value - VecInt{}; }
CPK_INLINE Vec load(const float* p) { return *reinterpret_cast<const VecInMemory*>(p); }
CPK_INLINE void store(float* p, Vec v) { *reinterpret_cast<VecInMemory*>(p) = v; }
// The first `count` floats, zeros behind them; at any address.
CPK_INLINE Vec load_part(const float* p, int64_t count) {
  Vec v = {};
  if (count >= kLanes) memcpy(&v, p, sizeof v);  // one instruction
  else memcpy(&v, p, sizeof(float) * size_t(count));
  return v;
}
CPK_INLINE void store_part(float* p, Vec v, int64_t count) {
  if (count >= kLanes) memcpy(p, &v, sizeof v);
  else memcpy(p, &v, sizeof(float) * size_t(count));
}
CPK_INLINE VecInt as_int(Vec v) { return (VecInt)v; }
CPK_INLINE Vec as_float(VecInt v) { return (Vec)v; }

// The 64-bit products of the lower halves of each lane.
CPK_INLINE VecWide multiply_lower_halves(VecWide a, uint32_t b) {
  const VecWide both = uint64_t{b} - VecWide{};
#if defined(__AVX512F__) && CPK_LANES == 16
  return (VecWide)_mm512_mul_epu32((__m512i)a, (__m512i)both);
#elif defined(__AVX2__) && CPK_LANES == 8
  return (VecWide)_mm256_mul_epu32((__m256i)a, (__m256i)both);
#elif defined(__SSE2__) && CPK_LANES == 4
  return (VecWide)_mm_mul_epu32((__m128i)a, (__m128i)both);
#else
  return (a & 0xffffffffu) * both;
#endif
}

// A double per lane: two vectors of half as many. (A vector of twice the length the compiler would keep in memory.)
struct VecDouble {
  typedef double Half __attribute__((vector_size(4 * CPK_LANES)));
  Half low = {}, high = {};
};
CPK_INLINE VecDouble operator+(VecDouble a, VecDouble b) { return {a.low + b.low, a.high + b.high}; }
CPK_INLINE VecDouble operator-(VecDouble a, VecDouble b) { return {a.low - b.low, a.high - b.high}; }
CPK_INLINE VecDouble operator*(VecDouble a, VecDouble b) { return {a.low * b.low, a.high * b.high}; }
CPK_INLINE VecDouble operator*(double a, VecDouble b) { return {a * b.low, a * b.high}; }
CPK_INLINE VecDouble load_doubles(const double* p) {
  VecDouble v;
  memcpy(&v.low, p, sizeof v.low);
  memcpy(&v.high, p + kLanes / 2, sizeof v.high);
  return v;
}
CPK_INLINE void store_doubles(double* p, VecDouble v) {
  memcpy(p, &v.low, sizeof v.low);
  memcpy(p + kLanes / 2, &v.high, sizeof v.high);
}
#if CPK_LANES == 16
#define CPK_FIRST 0, 1, 2, 3, 4, 5, 6, 7
#define CPK_SECOND 8, 9, 10, 11, 12, 13, 14, 15
#elif CPK_LANES == 8
#define CPK_FIRST 0, 1, 2, 3
#define CPK_SECOND 4, 5, 6, 7
#else
#define CPK_FIRST 0, 1
#define CPK_SECOND 2, 3
#endif
CPK_INLINE VecDouble widened(Vec v) {
  return {__builtin_convertvector(__builtin_shufflevector(v, v, CPK_FIRST), VecDouble::Half),
          __builtin_convertvector(__builtin_shufflevector(v, v, CPK_SECOND), VecDouble::Half)};
}
CPK_INLINE Vec narrowed(VecDouble v) {
  typedef float Part __attribute__((vector_size(2 * CPK_LANES)));
  return __builtin_shufflevector(__builtin_convertvector(v.low, Part), __builtin_convertvector(v.high, Part), CPK_FIRST,
                                 CPK_SECOND);
}
#undef CPK_FIRST
#undef CPK_SECOND

// `mask` is 0 or the sign bit in every lane.
CPK_INLINE Vec flip_sign(Vec v, uint32_t mask) { return as_float(as_int(v) ^ broadcast_int(int32_t(mask))); }

// A vector as an operand of an assembler statement that changes it.
#if defined(__AVX512F__)
#define CPK_VECTOR_OPERAND "+v"  // any of the 32 registers
#elif defined(__x86_64__)
#define CPK_VECTOR_OPERAND "+x"
#elif defined(__aarch64__)
#define CPK_VECTOR_OPERAND "+w"
#else
#define CPK_VECTOR_OPERAND "+m"
#endif

// The value itself, rounded: the compiler must not merge the product that made it into a following addition. For
// results that have to be the same bits in code that uses more of them and in code that uses less.
CPK_INLINE Vec rounded(Vec v) {
  asm("" : CPK_VECTOR_OPERAND(v));
  return v;
}

CPK_INLINE Vec vmax(Vec a, Vec b) {
#if defined(__AVX512F__) && CPK_LANES == 16
  return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__) && CPK_LANES == 8
  return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__) && CPK_LANES == 4
  return (Vec)_mm_max_ps((__m128)a, (__m128)b);
#else
  return a > b ? a : b;
#endif
}

// Whether a mask of 0 or -1 per lane has a -1.
CPK_INLINE bool any_lane(VecInt mask) {
#if defined(__AVX512F__) && CPK_LANES == 16
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__) && CPK_LANES == 8
  return _mm256_movemask_ps((__m256)mask) != 0;
#elif defined(__SSE2__) && CPK_LANES == 4
  return _mm_movemask_ps((__m128)mask) != 0;
#else
  int32_t any = 0;
  for (int lane = 0; lane < kLanes; ++lane) any |= mask[lane];
  return any != 0;
#endif
}

// Whether a > b in any lane.
CPK_INLINE bool any_greater(Vec a, Vec b) {
#if defined(__AVX512F__) && CPK_LANES == 16
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ) != 0;  // no detour over a vector
#else
  return any_lane(a > b);
#endif
}

// Where to find the even and odd lanes of two vectors, and what interleaves their first and second halves.
#if CPK_LANES == 16
#define CPK_EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define CPK_ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#define CPK_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define CPK_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif CPK_LANES == 8
#define CPK_EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define CPK_ODD 1, 3, 5, 7, 9, 11, 13, 15
#define CPK_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define CPK_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#else
#define CPK_EVEN 0, 2, 4, 6
#define CPK_ODD 1, 3, 5, 7
#define CPK_LOW 0, 4, 1, 5
#define CPK_HIGH 2, 6, 3, 7
#endif

// Sums of the lanes of kLanes vectors, in order; neighbours are added first. The vectors are overwritten.
CPK_INLINE Vec sums_of_lanes(Vec* x) {
#pragma GCC unroll 4
  for (int count = kLanes / 2; count > 0; count /= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < count; ++i) {
      x[i] = __builtin_shufflevector(x[2 * i], x[2 * i + 1], CPK_EVEN) +
             __builtin_shufflevector(x[2 * i], x[2 * i + 1], CPK_ODD);
    }
  }
  return x[0];
}

// Lane j of vector i becomes lane i of vector j. Each interleaving moves one bit of i into j and one of j into i.
CPK_INLINE void transpose(Vec (&x)[kLanes]) {
#pragma GCC unroll 4
  for (int bit = 1; bit < kLanes; bit *= 2) {
    Vec y[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      y[2 * i] = __builtin_shufflevector(x[i], x[i + kLanes / 2], CPK_LOW);
      y[2 * i + 1] = __builtin_shufflevector(x[i], x[i + kLanes / 2], CPK_HIGH);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) x[i] = y[i];
  }
}

#undef CPK_EVEN
#undef CPK_ODD
#undef CPK_LOW
#undef CPK_HIGH

CPK_INLINE float sum_lanes(Vec v) {
  float total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += v[lane];
  return total;
}

CPK_INLINE double sum_lanes(const VecDouble& v) {
  double total = 0;
  for (int lane = 0; lane < kLanes / 2; ++lane) total += v.low[lane];
  for (int lane = 0; lane < kLanes / 2; ++lane) total += v.high[lane];
  return total;
}

CPK_INLINE float max_lanes(Vec v) {
  float best = v[0];
  for (int lane = 1; lane < kLanes; ++lane) best = v[lane] > best ? v[lane] : best;
  return best;
}

// 2^x for x <= about 0, relative error 9e-8 besides rounding; below 2^-125 it stays there, so nothing is denormal.
// A degree-5 minimax polynomial in the fraction, its constant term exactly 1.
CPK_INLINE Vec exp2_nonpositive(Vec x) {
  const Vec magic = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
  x = vmax(x, broadcast(-125.0f));
  const Vec shifted = x + magic;
  const Vec r = x - (shifted - magic);
  Vec p = broadcast(0.001326472712366026f);
  p = p * r + broadcast(0.009671512644826394f);
  p = p * r + broadcast(0.05550733743496919f);
  p = p * r + broadcast(0.24022242085262263f);
  p = p * r + broadcast(0.6931469775989941f);
  p = p * r + broadcast(1.0f);
  return as_float(as_int(p) + (as_int(shifted) << 23));
}

// log2(x) for normal positive x, relative error 3e-8 besides rounding, near x = 1 too.
CPK_INLINE Vec log2_positive(Vec x) {
  const VecInt bits = as_int(x);
  // Exponent such that the mantissa lies in [sqrt(1/2), sqrt(2)).
  const VecInt exponent = (bits - broadcast_int(0x3f3504f3)) >> 23;
  const Vec m = as_float(bits - (exponent << 23)) - broadcast(1.0f);
  Vec p = broadcast(0.12583701303961792f);
  p = p * m + broadcast(-0.2072697431699654f);
  p = p * m + broadcast(0.21571560677261414f);
  p = p * m + broadcast(-0.2389448217717987f);
  p = p * m + broadcast(0.28791624808553895f);
  p = p * m + broadcast(-0.36070368280161097f);
  p = p * m + broadcast(0.48091064294491764f);
  p = p * m + broadcast(-0.7213473468032467f);
  p = p * m + broadcast(1.4426950036524215f);
  return __builtin_convertvector(exponent, Vec) + p * m;
}

// A float32 sum of many terms in three levels: a group, sixteen groups, all. Thousands of nearly equal terms added one
// by one would round the same way each time, and the gradient takes differences of such sums.
struct LeveledSum {
  Vec group = broadcast(0.0f), sixteen = broadcast(0.0f), all = broadcast(0.0f);

  CPK_INLINE void add(Vec v) { group = group + v; }
  CPK_INLINE void group_done(int64_t i) {
    sixteen = sixteen + group;
    group = broadcast(0.0f);
    if ((i & 15) == 15) {
      all = all + sixteen;
      sixteen = broadcast(0.0f);
    }
  }
  CPK_INLINE Vec total() const { return all + sixteen + group; }
};

}  // namespace cplearn::CPK_TARGET
