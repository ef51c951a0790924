// Single coordinates of codes, for the kernels that treat a row at a time.
#pragma once

#include "../../codes.h"
#include "../../philox.h"
#include "device.cuh"

namespace cplearn::cuda {

// Bit k % 128; without an index into the words, which would put them into memory.
__device__ __forceinline__ uint32_t bit_of(const PhiloxWords& words, uint32_t k) {
  const uint32_t which = k / 32 % 4, *w = words.word;
  return (which == 0 ? w[0] : which == 1 ? w[1] : which == 2 ? w[2] : w[3]) >> (k % 32) & 1;
}

__device__ __forceinline__ uint32_t sign_bit(uint64_t seed, PhiloxStream stream, uint64_t index, uint32_t k) {
  return bit_of(sign_words(seed, stream, index, k / 128), k);
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
    bit = codes.packed[code * words_of_code(codes) + k / 32] >> (k % 32) & 1;
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
