// The tensor-core product of sign_gemm.h: logits of independent codes, and their weighted sums.
//
// A block of four warps makes 64 rows by 128 columns. The ±1 operand is made of sign bits in registers; the other one
// goes from the cache into registers, 16 bytes a lane, as the tensor cores take it. So no shared memory, and no
// barrier. Sums of 128 products are added up outside of the tensor cores, whose accumulators truncate.
#include "../sign_gemm.h"

#include "../launch.cuh"
#include "mma_fragment_layout.cuh"

namespace cplearn::cuda {
namespace {

constexpr int kRows = 32, kColumns = 64;  // of a warp
constexpr int kWarpsDown = 2, kWarpsAcross = 2, kThreads = 32 * kWarpsDown * kWarpsAcross;
constexpr int kGroup = 128;  // numbers of a row that are added up at a time
constexpr int kRowTiles = kRows / kTileRows, kColumnTiles = kColumns / 8;

struct Arguments {
  Halves left;
  Signs right;
  int64_t groups_per_split;
  float* out;
  int64_t out_stride;
  double* sums;
  int64_t split_stride;
};

// A pair of ±1 in half floats: bits i and i + 16 of the word.
__device__ __forceinline__ uint32_t pair_of_signs(uint32_t word, int i) {
  return ((word << (15 - i)) & 0x80008000u) | 0x3C003C00u;
}

template <bool kAdd>
__global__ void __launch_bounds__(kThreads) sign_gemm_kernel(const Arguments a) {
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32, group_of_lane = lane / 4, in_group = lane % 4;
  const int64_t first_row = (int64_t(blockIdx.y) * kWarpsDown + warp / kWarpsAcross) * kRows;
  const int64_t first_column = (int64_t(blockIdx.x) * kWarpsAcross + warp % kWarpsAcross) * kColumns;
  const int64_t words = a.left.width / 32, all_groups = a.left.width / kGroup;
  const int64_t begin = int64_t(blockIdx.z) * a.groups_per_split;
  const int64_t end = begin + a.groups_per_split < all_groups ? begin + a.groups_per_split : all_groups;
  // Rows and columns that do not exist repeat the last ones and are not written.
  const int64_t last_row = a.left.rows - 1, stride_words = a.left.row_stride / 32;
  const auto row_at = [&](int tile, int half) {
    const int64_t row = first_row + tile * kTileRows + half * 8 + group_of_lane;
    return row < last_row ? row : last_row;
  };
  const auto tile_at = [&](int tile) {
    const int64_t there = first_row / kTileRows + tile, last = last_row / kTileRows;
    return there < last ? there : last;
  };
  float totals[kRowTiles][kColumnTiles][4] = {};
#pragma unroll 1
  for (int64_t group = begin; group < end; ++group) {
    float sums[kRowTiles][kColumnTiles][4] = {};
#pragma unroll 1
    for (int w = 0; w < kGroup / 32; ++w) {
      const int64_t word_index = group * (kGroup / 32) + w;
      uint4 high[kRowTiles][2], low[kRowTiles][2];
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int64_t at = (((tile_at(tile) * stride_words + word_index) * 2 + j) * 32 + lane) * 4;
          high[tile][j] = load_vector<uint4>(a.left.high + at);
          low[tile][j] = load_vector<uint4>(a.left.low + at);
        }
      }
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c) {
        int64_t column = first_column + c * 8 + group_of_lane;
        if (column >= a.right.columns) column = a.right.columns - 1;
        // A lane's pairs begin at bit in_group.
        const uint32_t word = a.right.bits[column * words + word_index] >> in_group;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const uint32_t signs[2] = {pair_of_signs(word, 8 * j), pair_of_signs(word, 8 * j + 4)};
#pragma unroll
          for (int tile = 0; tile < kRowTiles; ++tile) {
            const uint4 h = high[tile][j], l = low[tile][j];
            const uint32_t low_part[4] = {l.x, l.y, l.z, l.w}, high_part[4] = {h.x, h.y, h.z, h.w};
            mma_m16n8k16(sums[tile][c], low_part, signs);
            mma_m16n8k16(sums[tile][c], high_part, signs);
          }
        }
      }
    }
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float scale = a.left.scales[row_at(tile, half) * a.left.scale_stride + (a.left.one_scale ? 0 : group)];
#pragma unroll
        for (int c = 0; c < kColumnTiles; ++c) {
          totals[tile][c][2 * half] += sums[tile][c][2 * half] * scale;
          totals[tile][c][2 * half + 1] += sums[tile][c][2 * half + 1] * scale;
        }
      }
    }
  }
#pragma unroll
  for (int tile = 0; tile < kRowTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int64_t row = first_row + tile * kTileRows + i / 2 * 8 + group_of_lane;
      if (row >= a.left.rows) continue;
#pragma unroll
      for (int c = 0; c < kColumnTiles; ++c) {
        const int64_t column = first_column + c * 8 + in_group * 2 + i % 2;
        if (column >= a.right.columns) continue;
        if constexpr (kAdd) {
          atomic_add(a.sums + int64_t(blockIdx.z) * a.split_stride + row * a.right.columns + column,
                 double(totals[tile][c][i]));
        } else {
          a.out[row * a.out_stride + column] = totals[tile][c][i];
        }
      }
    }
  }
}

dim3 grid_for(const Halves& left, const Signs& right, int splits) {
  return {unsigned(ceil_div(right.columns, kColumns * kWarpsAcross)), unsigned(ceil_div(left.rows, kRows * kWarpsDown)),
          unsigned(splits)};
}

}  // namespace

void sign_gemm(const Call& call, const Halves& left, const Signs& right, float* out, int64_t out_stride) {
  launch("sign_gemm", sign_gemm_kernel<false>, grid_for(left, right, 1), kThreads, 0, call,
         Arguments{left, right, left.width / kGroup, out, out_stride, nullptr, 0});
}

void add_sign_gemm(const Call& call, const Halves& left, const Signs& right, int splits, double* out,
                      int64_t split_stride) {
  launch("add_sign_gemm", sign_gemm_kernel<true>, grid_for(left, right, splits), kThreads, 0, call,
         Arguments{left, right, ceil_div(left.width / kGroup, splits), nullptr, 0, out, split_stride});
}

}  // namespace cplearn::cuda
