// Single coordinates of codes, for the kernels that treat a row at a time.
#pragma once

#include "../../codes.h"
#include "../../philox.h"
#include "device.cuh"

namespace cplearn::cuda {

__device__ __forceinline__ uint32_t sign_bit(uint64_t seed, PhiloxStream stream, uint64_t index, uint32_t k) {
  const PhiloxWords words = sign_words(seed, stream, index, k / 128);
  const uint32_t which = k / 32 % 4;
  const uint32_t word = which == 0 ? words.word[0] : which == 1 ? words.word[1] : which == 2 ? words.word[2] : words.word[3];
  return word >> (k % 32) & 1;
}

__device__ __forceinline__ uint32_t parity(uint32_t x) {
  x ^= x >> 16, x ^= x >> 8, x ^= x >> 4, x ^= x >> 2, x ^= x >> 1;
  return x & 1;
}

// A code's number in the whole dictionary: what it is generated from.
__device__ __forceinline__ uint64_t generated_index(const Codes& codes, int64_t code) {
  return uint64_t(codes.first_code + code);
}

// +1 or -1: coordinate k of a code (cplearn_kernels/dictionary.py).
__device__ __forceinline__ float code_sign(const Codes& codes, int64_t code, int32_t k) {
  const uint64_t index = generated_index(codes, code);
  uint32_t bit;
  if (codes.kind == CodeKind::kPacked) {
    bit = codes.packed[code * ((codes.num_features + 31) / 32) + k / 32] >> (k % 32) & 1;
  } else if (codes.kind == CodeKind::kRademacher) {
    bit = sign_bit(codes.seed, kStreamRademacher, index, uint32_t(k));
  } else {
    const uint64_t block = index >> codes.log2_block;
    const uint32_t in_block = uint32_t(index - (block << codes.log2_block));
    bit = sign_bit(codes.seed, kStreamHadamardSigns, block, uint32_t(k)) ^
          parity(uint32_t(codes.positions[k]) & in_block);
  }
  return bit != 0 ? -1.0f : 1.0f;
}

}  // namespace cplearn::cuda
