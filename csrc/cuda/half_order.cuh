// The order in which the 32 numbers of a word of sign bits lie in memory for the tensor cores, and how numbers become
// two halves.
//
// A lane of sign_product.cuh takes, for a word, the eight numbers 8 j + 4 q + t + 16 h (j, q, h in {0, 1}; t its index
// in a group of four). In memory they follow each other, so that a lane loads its half floats 16 bytes at a time, and the
// signs of a pair (h = 0, 1) are two bits of the word that lie 16 apart: one shift and one mask make a pair of ±1.
#pragma once

#include "device.cuh"
#include "../codes.h"

namespace cplearn::cuda {

// Index in memory -> number within the word.
CPK_SHARED_FUNCTION int number_at(int i) { return 8 * ((i >> 2) & 1) + 4 * ((i >> 1) & 1) + ((i >> 3) & 3) + 16 * (i & 1); }
// Number within the word -> index in memory.
CPK_SHARED_FUNCTION int index_of(int k) { return 8 * (k & 3) + 4 * (k >> 3 & 1) + 2 * (k >> 2 & 1) + (k >> 4); }

// (up, down), powers of two with `up * down = 1`, such that `largest * up` lies in [2^10, 2^11): what is below the
// largest by 2^24 or more still has a half float of its own.
struct PowerOfTwoScale {
  float up, down;
};
__device__ __forceinline__ PowerOfTwoScale power_of_two_scale(float largest) {
  int exponent = int(float_bits(largest) >> 23) & 255;
  exponent = exponent < 11 ? 11 : exponent > 254 ? 254 : exponent;
  return {float_of(uint32_t(264 - exponent) << 23), float_of(uint32_t(exponent - 10) << 23)};
}

// x as the sum of two half floats: 22 bits of it.
__device__ __forceinline__ void split(float x, uint16_t& high, uint16_t& low) {
  high = half_bits(x);
  low = half_bits(x - half_value(high));
}

}  // namespace cplearn::cuda
