// CUDA's thread model on the host: what csrc/cuda/kernels/device.cuh takes from the compiler and the device on a GPU
// comes from here when CPK_EMULATE is defined, so that the very same kernel sources run and are tested without one.
//
// The threads of a block are fibers that run one at a time and give way at barriers and shuffles; blocks run one after
// the other. Shared memory is looked after word by word: a read or a write that no barrier separates from another
// thread's write (or a write from another thread's read) ends the launch with an error, whichever order the fibers
// happened to run in. So do reads of words that nobody wrote, accesses out of bounds or off their alignment, and
// barriers that some thread never reaches.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace cplearn::emulation {

struct Launch {
  const char* kernel;
  dim3 grid, block;
  int shared_bytes;
};

// Runs `body` as every thread of the grid; throws std::runtime_error, naming the kernel, for anything the detector
// finds.
void run(const Launch& launch, const std::function<void()>& body);

// The order in which the runnable fibers of a block take turns: 0 ascending, 1 descending, others seeds of a shuffle.
void set_order(unsigned order);

// Of the thread that is running.
dim3 thread_index();
dim3 block_index();
dim3 grid_size();
dim3 block_size();

void wait_for_block();
void wait_for_warp();
// Barrier `id` of `threads` threads, whole warps.
void wait_at(int id, int threads);

// Gives `words` words of every lane of the warp to `combine`, which is called once per lane with the words of all 32.
// The result is what `combine` left in `out`.
void warp_collective(const uint32_t* words, int count, const std::function<void(const uint32_t (&)[32][16])>& combine);

float shared_load(int word);
void shared_store(int word, float value);
[[noreturn]] void fail(const std::string& message);

}  // namespace cplearn::emulation

#define threadIdx (::cplearn::emulation::thread_index())
#define blockIdx (::cplearn::emulation::block_index())
#define gridDim (::cplearn::emulation::grid_size())
#define blockDim (::cplearn::emulation::block_size())

// What csrc/cuda/kernels/device.cuh promises the kernels.
namespace cplearn::cuda {

inline void sync_block() { emulation::wait_for_block(); }
inline void sync_warp() { emulation::wait_for_warp(); }
inline void sync_named(int id, int threads) { emulation::wait_at(id, threads); }

template <class T>
T shuffle_xor(T value, int mask) {
  static_assert(sizeof(T) % 4 == 0 && sizeof(T) <= 64);
  uint32_t words[sizeof(T) / 4];
  std::memcpy(words, &value, sizeof value);
  const int lane = int(threadIdx.x) % 32;
  T result;
  emulation::warp_collective(words, sizeof(T) / 4, [&](const uint32_t (&all)[32][16]) {
    std::memcpy(&result, all[lane ^ mask], sizeof result);
  });
  return result;
}

inline uint32_t warp_ballot(bool value) {
  const uint32_t word = value;
  uint32_t result = 0;
  emulation::warp_collective(&word, 1, [&](const uint32_t (&all)[32][16]) {
    for (int lane = 0; lane < 32; ++lane) result |= all[lane][0] << lane;
  });
  return result;
}

// Through a table: the compiler's own conversion is a call, and a product of two tiles takes thousands.
inline float half_value(uint16_t bits) {
  static const std::vector<float> table = [] {
    std::vector<float> values(1 << 16);
    for (int i = 0; i < 1 << 16; ++i) {
      const uint16_t pattern = uint16_t(i);
      _Float16 half;
      std::memcpy(&half, &pattern, 2);
      values[i] = float(half);
    }
    return values;
  }();
  return table[bits];
}
inline uint16_t half_bits(float value) {
  const _Float16 half = _Float16(value);
  uint16_t bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}

// mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32: d += a b, fragments as PTX lays them out over the lanes.
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const uint32_t words[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
  const int lane = int(threadIdx.x) % 32, group = lane / 4, in_group = lane % 4;
  emulation::warp_collective(words, 6, [&](const uint32_t (&all)[32][16]) {
    float left[2][16], right[2][16];  // of this lane's two rows and two columns
    for (int k = 0; k < 16; ++k) {
      const int owner = k % 8 / 2, shift = 16 * (k % 2);
      for (int half = 0; half < 2; ++half) {
        left[half][k] = half_value(uint16_t(all[group * 4 + owner][half + 2 * (k / 8)] >> shift));
        right[half][k] = half_value(uint16_t(all[(2 * in_group + half) * 4 + owner][4 + k / 8] >> shift));
      }
    }
    for (int i = 0; i < 4; ++i) {
      float sum = 0;  // the products first, then the accumulator, as the hardware adds a group of k at a time
      for (int k = 0; k < 16; ++k) sum += left[i / 2][k] * right[i % 2][k];
      d[i] += sum;
    }
  });
}

inline uint32_t made_anew(uint32_t x) { return x; }
inline void atomic_add(double* p, double value) { *p += value; }
inline float exp2_fast(float x) { return std::exp2(x); }
inline float smaller_or_nan(float a, float b) { return a < b || a != a ? a : b; }
inline uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// Vector accesses to global memory, which a GPU faults on when they are off their alignment.
template <class Vector, class T>
Vector load_vector(const T* p) {
  if (reinterpret_cast<uintptr_t>(p) % sizeof(Vector) != 0) emulation::fail("a vector load off its alignment");
  Vector value;
  std::memcpy(&value, p, sizeof value);
  return value;
}
template <class Vector, class T>
void store_vector(T* p, Vector value) {
  if (reinterpret_cast<uintptr_t>(p) % sizeof(Vector) != 0) emulation::fail("a vector store off its alignment");
  std::memcpy(p, &value, sizeof value);
}

// The block's dynamic shared memory, counted in floats.
class Shared {
 public:
  explicit Shared(int first) : first_(first) {}
  Shared operator+(int offset) const { return Shared(first_ + offset); }
  float load(int i) const { return emulation::shared_load(first_ + i); }
  void store(int i, float value) const { emulation::shared_store(first_ + i, value); }
  float4 load4(int i) const {
    check(i);
    return {load(i), load(i + 1), load(i + 2), load(i + 3)};
  }
  void store4(int i, float4 v) const {
    check(i);
    store(i, v.x), store(i + 1, v.y), store(i + 2, v.z), store(i + 3, v.w);
  }

 private:
  void check(int i) const {
    if ((first_ + i) % 4 != 0) emulation::fail("a vector access to shared memory off its alignment");
  }
  int first_;
};
inline Shared shared_memory() { return Shared(0); }

}  // namespace cplearn::cuda
