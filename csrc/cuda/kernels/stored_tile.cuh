// One row of the batch with 128 independent codes, whose products sign_gemm.cu has left in memory; weighted sums of
// codes are its work too, so that a tile only writes the weights, as half floats.
//
// A team of 4 threads holds the 128 numbers; a thread has those that a lane of the tensor cores' operand takes
// (mma_fragment_layout.cuh), for the four words of sign bits in turn.
#pragma once

#include "../arguments.h"
#include "device.cuh"
#include "mma_fragment_layout.cuh"
#include "hadamard_tile.cuh"

namespace cplearn::cuda {

class StoredTile {
 public:
  static constexpr int kBlock = 128, kLog2Threads = 2, kThreads = 4, kSharedFloats = 0;
  static constexpr bool kInMemory = true;
  // A partner's products are in memory as well: none of what HadamardTile has for partners is ever called.
  static constexpr bool kHasPartner = false;
  __device__ void offer(int, float, float, float, float) const;
  __device__ void meet() const;
  __device__ float4 partner4(int) const;
  __device__ float partner(int) const;
  __device__ void turn_page() const;

  // Where weights go: `which` is 0 for weighted codes, 1 for p times the codes.
  struct Sums {
    int64_t row;
  };

  __device__ StoredTile(const TileData& data, int) : data_(data), thread_(int(threadIdx.x) % kThreads) {}

  __device__ int thread() const { return thread_; }
  __device__ int code(int e) const { return e / 8 * 32 + number_at(thread_ * 8 + e % 8); }

  __device__ int element_of(int code) const {
    const int index = index_of(code % 32);
    return index / 8 == thread_ ? code / 32 * 8 + index % 8 : -1;
  }
  __device__ float4 of_codes(const float* array, int e) const {
    return make_float4(array[code(e)], array[code(e + 1)], array[code(e + 2)], array[code(e + 3)]);
  }

  __device__ void logits(const float* products, int64_t row, int block, float (&s)[kElements]) const {
    const float* from = products + row * data_.stride + int64_t(block) * kBlock + thread_ * 8;
#pragma unroll
    for (int e = 0; e < kElements; e += 4) {
      const float4 four = load_vector<float4>(from + e / 8 * 32 + e % 8);
      s[e] = four.x, s[e + 1] = four.y, s[e + 2] = four.z, s[e + 3] = four.w;
    }
  }

  // Writes the weights of a block's codes; the lanes of a warp do so together. The threads' results add up to the sum
  // of the weights.
  __device__ float add_codes(float (&x)[kElements], int block, Sums& sums) const {
    float largest = 0;
    PartedSum<4> sum;
#pragma unroll
    for (int e = 0; e < kElements; ++e) largest = fmaxf(largest, fabsf(x[e])), sum.add(e, x[e]);
    largest = fmaxf(largest, shuffle_xor(largest, 1));
    largest = fmaxf(largest, shuffle_xor(largest, 2));
    const PowerOfTwoScale scale = power_of_two_scale(largest);
    const int64_t words = data_.stride / 32;
    bool finite = true;
#pragma unroll
    for (int e = 0; e < kElements; e += 2) {
      uint16_t high_0, high_1, low_0, low_1;
      in_two_halves(x[e] * scale.up, high_0, low_0);
      in_two_halves(x[e + 1] * scale.up, high_1, low_1);
      const int64_t at = pair_index(sums.row, int64_t(block) * 4 + e / 8, words, thread_, e / 4 % 2, e / 2 % 2);
      data_.high[at] = high_0 | uint32_t(high_1) << 16;
      data_.low[at] = low_0 | uint32_t(low_1) << 16;
      finite = finite && x[e] - x[e] == 0.0f && x[e + 1] - x[e + 1] == 0.0f;
    }
    // A weight that is NaN is lost on the way to a maximum, and must not be.
    const uint32_t all_finite = warp_ballot(finite) >> (threadIdx.x % 32 / kThreads * kThreads);
    if (thread_ == 0) {
      data_.scales[sums.row * (data_.stride / kBlock) + block] = (all_finite & 15u) == 15u ? scale.down : NAN;
    }
    return sum.total();
  }

 private:
  const TileData& data_;
  const int thread_;
};

struct StoredTiles {
  template <int kGroup>
  using Of = StoredTile;
};

}  // namespace cplearn::cuda
