// The sums over a view's rows that make p̄ of each code (reference.mean_assignment), and the tile-wise probabilities
// themselves (reference.projector_softmax).
//
// A team owns a block of codes and goes over the rows of one split; its numbers stay in registers.
#pragma once

#include "../arguments.h"
#include "best_codes.cuh"
#include "device.cuh"

namespace cplearn::cuda {

// A logit less the row's best: at most 0, or NaN.
__device__ __forceinline__ float below_best(float s, float best) { return smaller_or_nan(s - best, 0.0f); }

// Grid (blocks of codes, splits of the rows, views). kLogs: sums of 2^(u - top), for -log p̄, else of p.
template <class Tile, bool kLogs>
__global__ void __launch_bounds__(Teams<Tile>::kBlockThreads) column_sums(const ColumnSumsArguments a) {
  using T = Teams<Tile>;
  const int team = int(threadIdx.x) / Tile::kThreads;
  const int blocks = (a.span.count + Tile::kBlock - 1) / Tile::kBlock;
  const int given_block = int(blockIdx.x) * T::kPerBlock + team;
  const int block = given_block < blocks ? given_block : blocks - 1;
  Tile tile(a.tile, team);
  float sums[kElements], top[kElements];
#pragma unroll
  for (int e = 0; e < kElements; ++e) sums[e] = 0, top[e] = kNoLogit;
  const int begin = int(blockIdx.y) * a.rows_per_split;
  const int end = begin + a.rows_per_split < a.per_view ? begin + a.rows_per_split : a.per_view;
#pragma unroll 1
  for (int i = begin; i < end; ++i) {
    const int64_t row = int64_t(blockIdx.z) * a.per_view + i;
    float s[kElements];
    tile.logits(a.tile.rows, row, block, s);
    const float best = a.rows.best[row], inverse_sum = a.rows.inverse_sum[row], shift = a.rows.shift[row];
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      const float d = below_best(s[e], best);
      if constexpr (kLogs) {
        const float u = d + shift, new_top = u > top[e] ? u : top[e];
        sums[e] = sums[e] * exp2_fast(top[e] - new_top) + exp2_fast(u - new_top);
        top[e] = new_top;
      } else {
        sums[e] += exp2_fast(d) * inverse_sum;
      }
    }
  }
  if (given_block >= blocks) return;
  const int64_t out = (int64_t(blockIdx.y) * gridDim.z + blockIdx.z) * a.span.count + int64_t(block) * Tile::kBlock;
  const int exist = a.span.count - block * Tile::kBlock;
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    const int code = tile.code(e);
    if (code >= exist) continue;
    a.sums[out + code] = sums[e];
    if constexpr (kLogs) a.top[out + code] = top[e];
  }
}

// p of each row and code, or the products themselves. Grid (blocks of codes, rows).
template <class Tile>
__global__ void __launch_bounds__(Teams<Tile>::kBlockThreads) probabilities(const ProbabilitiesArguments a) {
  using T = Teams<Tile>;
  const int team = int(threadIdx.x) / Tile::kThreads;
  const int64_t given_row = int64_t(blockIdx.y) * T::kPerBlock + team;
  const int64_t row = given_row < a.total ? given_row : a.total - 1;
  const int block = int(blockIdx.x);
  Tile tile(a.tile, team);
  float s[kElements];
  tile.logits(a.tile.rows, row, block, s);
  if (given_row >= a.total) return;
  const float best = a.scores ? 0.0f : a.rows.best[row], inverse_sum = a.scores ? 0.0f : a.rows.inverse_sum[row];
  float* const out = a.out + row * a.stride + int64_t(block) * Tile::kBlock;
  const int exist = a.span.count - block * Tile::kBlock;
#pragma unroll
  for (int e = 0; e < kElements; ++e) {
    const int code = tile.code(e);
    if (code < exist) out[code] = a.scores ? s[e] : exp2_fast(below_best(s[e], best)) * inverse_sum;
  }
}

}  // namespace cplearn::cuda
