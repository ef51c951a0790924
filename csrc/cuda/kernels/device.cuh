// What the kernels use of a GPU beyond plain C++: barriers, warp operations, shared memory, halves, the tensor cores.
//
// With CPK_EMULATE the same names come from the thread model of tests/kernels/cuda/emulation, on the host.
#pragma once

#include <cstdint>

#ifdef CPK_EMULATE
#include "emulation.h"
#else

namespace cplearn::cuda {

__device__ __forceinline__ void sync_block() { __syncthreads(); }
__device__ __forceinline__ void sync_warp() { __syncwarp(); }
// Barrier `id` (1 to 15) of `threads` threads, whole warps.
__device__ __forceinline__ void sync_named(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
__device__ __forceinline__ uint32_t warp_ballot(bool value) { return __ballot_sync(0xffffffffu, value); }

__device__ __forceinline__ float half_value(uint16_t bits) {
  float value;
  asm("{ .reg .b16 h; mov.b16 h, %1; cvt.f32.f16 %0, h; }" : "=f"(value) : "h"(bits));
  return value;
}
__device__ __forceinline__ uint16_t half_bits(float value) {
  uint16_t bits;
  asm("{ .reg .b16 h; cvt.rn.f16.f32 h, %1; mov.b16 %0, h; }" : "=h"(bits) : "f"(value));
  return bits;
}

// d += a b of a (16, 16) and b (16, 8) in float16, fragments as PTX lays them out over the lanes.
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Adds to a number that this thread alone adds to, without waiting for it or holding a register: the order of additions
// is the thread's own, so results do not depend on scheduling.
__device__ __forceinline__ void atomic_add(double* p, double value) {
  asm volatile("red.relaxed.gpu.global.add.f64 [%0], %1;" ::"l"(p), "d"(value) : "memory");
}

// The same number, of which the compiler knows nothing: what is made of it is then made anew in each place, instead of
// being kept in registers from the first to the last.
__device__ __forceinline__ uint32_t made_anew(uint32_t x) {
  asm volatile("" : "+r"(x));
  return x;
}

// 2^x to 2 units in the last place, zero where the result is subnormal.
__device__ __forceinline__ float exp2_fast(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
// The smaller of the two, NaN if one of them is: fminf would lose it.
__device__ __forceinline__ float smaller_or_nan(float a, float b) {
  float result;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}
__device__ __forceinline__ uint32_t float_bits(float value) { return __float_as_uint(value); }
__device__ __forceinline__ float float_of(uint32_t bits) { return __uint_as_float(bits); }

template <class Vector, class T>
__device__ __forceinline__ Vector load_vector(const T* p) {
  return *reinterpret_cast<const Vector*>(p);
}
template <class Vector, class T>
__device__ __forceinline__ void store_vector(T* p, Vector value) {
  *reinterpret_cast<Vector*>(p) = value;
}

// The block's dynamic shared memory, counted in floats.
class Shared {
 public:
  __device__ explicit Shared(float* p) : p_(p) {}
  __device__ Shared operator+(int offset) const { return Shared(p_ + offset); }
  __device__ float load(int i) const { return p_[i]; }
  __device__ void store(int i, float value) const { p_[i] = value; }
  __device__ float4 load4(int i) const { return *reinterpret_cast<const float4*>(p_ + i); }
  __device__ void store4(int i, float4 v) const { *reinterpret_cast<float4*>(p_ + i) = v; }

 private:
  float* p_;
};
extern __shared__ float4 dynamic_shared_memory[];
__device__ __forceinline__ Shared shared_memory() { return Shared(reinterpret_cast<float*>(dynamic_shared_memory)); }

}  // namespace cplearn::cuda
#endif

namespace cplearn::cuda {

// The sum over a warp, in all of its lanes.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int mask = 1; mask < 32; mask <<= 1) value += shuffle_xor(value, mask);
  return value;
}

}  // namespace cplearn::cuda
