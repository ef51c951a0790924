// Tables of sign bits of a span's codes, from Philox or from a caller's matrix: a bit per coordinate, for all rows.
#include "../launch.cuh"
#include "../rows.h"
#include "code_sign.cuh"
#include "hadamard_tile.cuh"
#include "mma_fragment_layout.cuh"

namespace cplearn::cuda {
namespace {

constexpr int kThreads = 128;

struct BlockSignsArguments {
  Codes codes;
  int64_t first, blocks;  // `first` of the whole dictionary
  const int32_t* coordinate_at;
  uint32_t* out;
};

// A thread per word. Places without a coordinate get any sign: their numbers are zero on the way in and unused on the
// way out.
__global__ void __launch_bounds__(kThreads) block_signs_kernel(const BlockSignsArguments a) {
  const HadamardOrder order = HadamardOrder::of(a.codes.log2_block);
  const int64_t item = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t block = item >> order.log2_threads;
  if (block >= a.blocks) return;
  const int thread = int(item - (block << order.log2_threads));
  PhiloxWords words{};
  int32_t group = -1;
  uint32_t word = 0;
  for (int e = 0; e < kElements; ++e) {
    const int32_t k = a.coordinate_at[HadamardOrder::place(order, thread, e)];
    if (k < 0) continue;
    if (k / 128 != group) {
      group = k / 128;
      words = sign_words(a.codes.seed, kStreamHadamardSigns, uint64_t(a.first + block), uint32_t(group));
    }
    word |= bit_of(words, uint32_t(k)) << e;
  }
  a.out[item] = word;
}

struct CodeBitsArguments {
  Codes codes;
  int64_t first, columns, width;
  uint32_t* out;
};

// A thread per column and 128 coordinates.
__global__ void __launch_bounds__(kThreads) code_bits_kernel(const CodeBitsArguments a) {
  const int64_t groups = a.width / 128, item = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t column = item / groups;
  const uint32_t group = uint32_t(item % groups);
  if (column >= a.columns) return;
  int64_t code = a.first + column / 32 * 32 + number_at(int(column % 32));
  if (code >= a.codes.num_codes) code = a.codes.num_codes - 1;
  const uint64_t index = generated_index(a.codes, code);
  PhiloxWords words{};
  if (a.codes.kind == CodeKind::kPacked) {
    const int64_t per_code = words_of_code(a.codes);
    for (int i = 0; i < 4; ++i) {
      words.word[i] = group * 4 + i < per_code ? a.codes.packed[code * per_code + group * 4 + i] : 0;
    }
  } else if (a.codes.kind == CodeKind::kRademacher) {
    words = sign_words(a.codes.seed, kStreamRademacher, index, group);
  } else {
    const uint64_t block = index >> a.codes.log2_block;
    const uint32_t in_block = uint32_t(index - (block << a.codes.log2_block));
    words = sign_words(a.codes.seed, kStreamHadamardSigns, block, group);
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      for (uint32_t i = 0; i < 32 && group * 128 + w * 32 + i < a.codes.num_features; ++i) {
        words.word[w] ^= parity(uint32_t(a.codes.positions[group * 128 + w * 32 + i]) & in_block) << i;
      }
    }
  }
  store_vector(a.out + item * 4, make_uint4(words.word[0], words.word[1], words.word[2], words.word[3]));
}

struct TransposeArguments {
  const uint32_t* bits;
  int64_t columns, width, num_features;
  uint32_t* out;
};

// A warp per word of codes and word of coordinates: lane i first holds code i, then coordinate i.
__global__ void __launch_bounds__(kThreads) transposed_bits_kernel(const TransposeArguments a) {
  const int lane = int(threadIdx.x) % 32;
  const int64_t words = a.width / 32, item = int64_t(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32;
  const int64_t code_word = item / words, word = item % words;
  const bool inside = code_word < a.columns / 32;
  const int64_t column = code_word * 32 + index_of(lane);
  const uint32_t mine = inside ? a.bits[column * words + word] : 0;
  uint32_t result = 0;
  for (int i = 0; i < 32; ++i) {
    const uint32_t row = warp_ballot((mine >> i & 1) != 0);
    if (lane == i) result = row;
  }
  const int64_t k = word * 32 + lane;
  if (inside && k < a.num_features) a.out[k * (a.columns / 32) + code_word] = result;
}

}  // namespace

void block_signs(const Call& call, const Codes& codes, int64_t first, int64_t blocks, const int32_t* coordinate_at,
                 uint32_t* out) {
  launch("block_signs", block_signs_kernel, blocks_for(blocks << (codes.log2_block - 5), kThreads), kThreads, 0, call,
         BlockSignsArguments{codes, (codes.first_code >> codes.log2_block) + first, blocks, coordinate_at, out});
}

void code_bits(const Call& call, const Codes& codes, int64_t first, int64_t columns, int64_t width, uint32_t* out) {
  launch("code_bits", code_bits_kernel, blocks_for(columns * (width / 128), kThreads), kThreads, 0, call,
         CodeBitsArguments{codes, first, columns, width, out});
}

void transposed_bits(const Call& call, const uint32_t* bits, int64_t columns, int64_t width, int64_t num_features,
                     uint32_t* out) {
  launch("transposed_bits", transposed_bits_kernel, blocks_for(columns / 32 * (width / 32) * 32, kThreads), kThreads, 0,
         call, TransposeArguments{bits, columns, width, num_features, out});
}

}  // namespace cplearn::cuda
