// One row of the batch with one block of a Hadamard dictionary: products with all its codes, and weighted sums of them.
//
// A team of T = F / 32 threads holds the F numbers of a block, 32 each, and the transform goes through three places:
// registers (the 32 of a thread), an exchange through shared memory, registers again; what is left of the threads'
// index after that, for F > 1024, goes through shuffles. Teams of up to 4 threads only shuffle.
//
//   place of a coordinate   T > 4: e * T + t; else t * 32 + e    for thread t and register e, before the transform
//   code                    t * 32 + e                           after it
//
// Prepared rows and sign bits lie in memory in the order in which threads take them (HadamardOrder).
#pragma once

#include "../arguments.h"
#include "device.cuh"

namespace cplearn::cuda {

constexpr int kElements = 32;  // numbers of a tile that a thread holds
constexpr int kLeastBlockThreads = 128;  // of a block of the passes; more only where a group of teams is larger

// A sum in several parts, so that additions need not wait for each other.
template <int kParts>
struct PartedSum {
  float part[kParts] = {};
  __device__ void add(int e, float value) { part[e % kParts] += value; }
  __device__ float total() const {
    if constexpr (kParts == 2) return part[0] + part[1];
    else return (part[0] + part[1]) + (part[2] + part[3]);
  }
};

// Where things lie in a block of 2^log2_block codes; for kernels that do not know the size at compile time, too.
struct HadamardOrder {
  int log2_threads;
  CPK_SHARED_FUNCTION HadamardOrder of(int log2_block) { return {log2_block - 5}; }
  CPK_SHARED_FUNCTION int place(HadamardOrder order, int thread, int e) {
    return order.log2_threads > 2 ? (e << order.log2_threads) + thread : thread * kElements + e;
  }
  // The thread and register whose number is at index `i` of a prepared row: four registers of all threads in turn, so
  // that threads load four at a time, side by side.
  CPK_SHARED_FUNCTION int place_at(HadamardOrder order, int i) {
    const int four = i >> (order.log2_threads + 2), thread = (i >> 2) & ((1 << order.log2_threads) - 1);
    return place(order, thread, four * 4 + (i & 3));
  }
};

__device__ __forceinline__ float flipped(float x, uint32_t word, int bit) {
  return float_of(float_bits(x) ^ ((word << (31 - bit)) & 0x80000000u));
}

// Butterflies between registers whose indices differ in one of the bits kFrom … kTo - 1.
template <int kFrom, int kTo>
__device__ __forceinline__ void butterflies(float (&x)[kElements]) {
#pragma unroll
  for (int h = 1 << kFrom; h < 1 << kTo; h <<= 1) {
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      if ((i & h) != 0) continue;
      const float a = x[i], b = x[i + h];
      x[i] = a + b;
      x[i + h] = a - b;
    }
  }
}

// Butterflies between threads whose indices differ in one of the lowest kBits bits.
template <int kBits>
__device__ __forceinline__ void lane_butterflies(float (&x)[kElements], int thread) {
#pragma unroll
  for (int bit = 1; bit < 1 << kBits; bit <<= 1) {
    const float sign = (thread & bit) != 0 ? -1.0f : 1.0f;
#pragma unroll
    for (int i = 0; i < kElements; ++i) x[i] = sign * x[i] + shuffle_xor(x[i], bit);
  }
}

// kGroup teams that exchange numbers with each other meet at the same barriers: 2 for the rows of an image in two
// views.
template <int kLog2Block, int kGroup>
class HadamardTile {
 public:
  static constexpr int kBlock = 1 << kLog2Block, kLog2Threads = kLog2Block - 5, kThreads = 1 << kLog2Threads;
  static_assert(kLog2Threads >= 1 && kLog2Threads <= 8);
  // Partner rows sit beside each other unless a row alone takes a block's registers.
  static constexpr bool kHasPartner = kLog2Block < 13;
  static constexpr bool kInMemory = false;

 private:
  static constexpr bool kExchanges = kLog2Threads > 2;
  // Four floats between the stretches of 32 that a thread takes as vectors, and, where a warp holds several teams, T
  // more between these: then neither the vectors nor the single floats meet in a bank.
  static constexpr int kQuads = kElements + 4;
  static constexpr int kBuffer = kThreads * kQuads + (kExchanges && kThreads < 32 ? kThreads : 0);
  static constexpr int kLeft = kLog2Threads > 5 ? kLog2Threads - 5 : 0;  // bits of the thread's index for shuffles

 public:
  // Per team, two buffers: what is written to one is read after the next barrier, and the one after that makes it free
  // again.
  static constexpr int kSharedFloats = kExchanges || kGroup > 1 ? 2 * kBuffer : 0;

  struct Sums {
    float value[kElements];
  };

  __device__ HadamardTile(const TileData& data, int team)
      : thread_(int(threadIdx.x) % kThreads),
        signs_(data.signs),
        page_(int(blockDim.x) / kThreads * kBuffer),
        buffer_(shared_memory() + team * kBuffer) {}

  __device__ int thread() const { return thread_; }
  __device__ int code(int e) const { return thread_ * kElements + e; }
  // The register of a code of the block, -1 if another thread has it.
  __device__ int element_of(int code) const { return code / kElements == thread_ ? code % kElements : -1; }

  // Four numbers of an array with one per code of the block, for e … e + 3.
  __device__ float4 of_codes(const float* array, int e) const {
    return load_vector<float4>(array + uint32_t(thread_ * kElements) + e);
  }

  // The products of a prepared row with the codes of a block: s[e] belongs to code(e).
  __device__ void logits(const float* rows, int64_t row, int block, float (&s)[kElements]) {
    const uint32_t word = made_anew(signs_[uint32_t(block * kThreads + thread_)]);
    const float* from = rows + (row * kBlock + uint32_t(thread_ * 4));
#pragma unroll
    for (int e = 0; e < kElements; e += 4) {
      const float4 four = load_vector<float4>(from + e * kThreads);
      s[e] = flipped(four.x, word, e), s[e + 1] = flipped(four.y, word, e + 1);
      s[e + 2] = flipped(four.z, word, e + 2), s[e + 3] = flipped(four.w, word, e + 3);
    }
    butterflies<0, 5>(s);
    if constexpr (kExchanges) {
      const Shared singles = buffer_ + single_base();
#pragma unroll
      for (int e = 0; e < kElements; ++e) singles.store(single(e), s[e]);
      sync();
      const Shared quads = buffer_ + quad_base();
#pragma unroll
      for (int e = 0; e < kElements; e += 4) {
        const float4 four = quads.load4(e);
        s[e] = four.x, s[e + 1] = four.y, s[e + 2] = four.z, s[e + 3] = four.w;
      }
      turn();
      butterflies<0, kLog2Threads - kLeft>(s);
      lane_butterflies<kLeft>(s, thread_);
    } else {
      lane_butterflies<kLog2Threads>(s, thread_);
    }
  }

  __device__ void clear(Sums& sums) const {
#pragma unroll
    for (int e = 0; e < kElements; ++e) sums.value[e] = 0;
  }

  // Adds `sum_j x_j w_j` over the codes of a block to `sums`, by places; x is lost. The threads' results add up to
  // `sum_j x_j`: it is the transform's first number.
  __device__ float add_codes(float (&x)[kElements], int block, Sums& sums) {
    if constexpr (kExchanges) {
      lane_butterflies<kLeft>(x, thread_);
      butterflies<0, kLog2Threads - kLeft>(x);
      const Shared quads = buffer_ + quad_base();
#pragma unroll
      for (int e = 0; e < kElements; e += 4) {
        quads.store4(e, make_float4(x[e], x[e + 1], x[e + 2], x[e + 3]));
      }
      sync();
      const Shared singles = buffer_ + single_base();
#pragma unroll
      for (int e = 0; e < kElements; ++e) x[e] = singles.load(single(e));
      turn();
    } else {
      lane_butterflies<kLog2Threads>(x, thread_);
    }
    butterflies<0, 5>(x);
    const float sum = thread_ == 0 ? x[0] : 0.0f;
    const uint32_t word = made_anew(signs_[uint32_t(block * kThreads + thread_)]);
#pragma unroll
    for (int e = 0; e < kElements; ++e) sums.value[e] += flipped(x[e], word, e);
    return sum;
  }

  // Adds the sums to doubles, (block) by places, or puts them there, and starts anew.
  __device__ void flush(Sums& sums, double* to, bool add) const {
    // One address and constants, see single().
    double* const first = to + uint32_t(HadamardOrder::place({kLog2Threads}, thread_, 0));
    constexpr int kStep = kExchanges ? kThreads : 1;
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      if (add) atomic_add(first + e * kStep, double(sums.value[e]));
      else first[e * kStep] = double(sums.value[e]);
      sums.value[e] = 0;
    }
  }

  // The partner's numbers for the same codes: after both teams' `offer` and `meet`; `turn_page` ends it.
  __device__ void offer(int e, float a, float b, float c, float d) const {
    buffer_.store4(thread_ * kQuads + e, make_float4(a, b, c, d));
  }
  __device__ void meet() { sync(); }
  __device__ float4 partner4(int e) const { return partner_buffer().load4(thread_ * kQuads + e); }
  __device__ float partner(int e) const { return partner_buffer().load(thread_ * kQuads + e); }
  __device__ void turn_page() { turn(); }

 private:
  __device__ void sync() const {
    if constexpr (kThreads * kGroup <= 32) sync_warp();
    else if constexpr (kThreads * kGroup >= kLeastBlockThreads) sync_block();  // the block is this group
    else sync_named(1 + int(made_anew(threadIdx.x)) / (kThreads * kGroup), kThreads * kGroup);
  }
  __device__ void turn() {
    buffer_ = buffer_ + page_;
    page_ = -page_;
  }
  __device__ Shared partner_buffer() const {
    const int team = int(made_anew(threadIdx.x)) / kThreads;  // as a number that need not be kept
    return buffer_ + (team % 2 == 0 ? kBuffer : -kBuffer);
  }
  // Of place e * T + t: a base and a constant, so that no register holds an address of its own for each e.
  __device__ int single_base() const { return thread_ + 4 * (thread_ / kElements); }
  __device__ static constexpr int single(int e) { return e * kThreads + 4 * (e * kThreads / kElements); }
  // Of the four codes from t * 32 + e on, less e. Made anew where the allocator of registers then finds room for all
  // (by trial, see bench.gpu.cuda_resources; it is a matter of one register).
  __device__ int quad_base() const { return (kLog2Block != 9 ? int(made_anew(uint32_t(thread_))) : thread_) * kQuads; }

  const int thread_;
  const uint32_t* const signs_;
  int page_;  // from the buffer in use to the other one
  Shared buffer_;
};

template <int kLog2Block>
struct HadamardTiles {
  template <int kGroup>
  using Of = HadamardTile<kLog2Block, kGroup>;
};

}  // namespace cplearn::cuda
