// The order in which half floats lie in memory for the tensor cores, and how numbers become two of them.
//
// The left operand of one instruction is 16 rows by 16 numbers, of which each lane holds four words of two half floats:
// rows g and g + 8, numbers t and t + 4 of 8, g and t the lane's place in eight groups of four. Here the numbers of a
// word of sign bits are taken as 8 j + 4 q + t + 16 h: j the instruction, q the word, h the half. In memory a lane's
// four words follow each other and the lanes too, so that an operand is one load of 16 bytes a lane; and the signs of a
// pair (h = 0, 1) are two bits that lie 16 apart: one shift and one mask make a pair of ±1.
#pragma once

#include "device.cuh"
#include "../../codes.h"

namespace cplearn::cuda {

// Of the numbers that a thread of a stored tile has, eight of a word: index 8 t + 4 j + 2 q + h -> number in the word.
CPK_SHARED_FUNCTION int number_at(int i) {
  return 8 * ((i >> 2) & 1) + 4 * ((i >> 1) & 1) + ((i >> 3) & 3) + 16 * (i & 1);
}
// The inverse.
CPK_SHARED_FUNCTION int index_of(int k) { return 8 * (k & 3) + 4 * (k >> 3 & 1) + 2 * (k >> 2 & 1) + (k >> 4); }

constexpr int kTileRows = 16;
// Where the pair of half floats (j, q) of a lane lies, counted in pairs: rows of `words` words of signs.
CPK_SHARED_FUNCTION int64_t pair_index(int64_t row, int64_t word, int64_t words, int t, int j, int q) {
  const int64_t lane = row % 8 * 4 + t, operand = (row / kTileRows * words + word) * 2 + j;
  return (operand * 32 + lane) * 4 + q * 2 + row / 8 % 2;
}

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
__device__ __forceinline__ void in_two_halves(float x, uint16_t& high, uint16_t& low) {
  high = half_bits(x);
  low = half_bits(x - half_value(high));
}

}  // namespace cplearn::cuda
