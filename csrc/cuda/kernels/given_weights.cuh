// Sums of codes with weights that are given (reference.projector_softmax, its gradient): the sums alone of
// weighted_codes.cuh.
#pragma once

#include "../arguments.h"
#include "best_codes.cuh"
#include "device.cuh"
#include "weighted_codes.cuh"

namespace cplearn::cuda {

// Sums of codes with the weights `p (v - centre)` of given arrays. Grid (rows, splits).
template <class Tile>
__global__ void __launch_bounds__(Teams<Tile>::kBlockThreads) given_weights(const GivenWeightsArguments a) {
  using T = Teams<Tile>;
  const int team = int(threadIdx.x) / Tile::kThreads;
  const int64_t given_row = int64_t(blockIdx.x) * T::kPerBlock + team;
  const int64_t row = given_row < a.total ? given_row : a.total - 1;
  Tile tile(a.tile, team);
  typename Tile::Sums sums;
  double* out = nullptr;
  if constexpr (Tile::kInMemory) {
    sums.row = row;
  } else {
    tile.clear(sums);
    out = a.sums + (int64_t(blockIdx.y) * 2 * a.total + row) * Tile::kBlock;
  }
  const double centre = a.centre[row];
  const int blocks = (a.span.count + Tile::kBlock - 1) / Tile::kBlock;
  const int begin = int(blockIdx.y) * a.blocks_per_split;
  const int end = begin + a.blocks_per_split < blocks ? begin + a.blocks_per_split : blocks;
#pragma unroll 1
  for (int block = begin; block < end; ++block) {
    const int64_t at = row * a.stride + int64_t(block) * Tile::kBlock;
    const int exist = a.span.count - block * Tile::kBlock;
    float x[kElements];
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      const int code = tile.code(e);
      // The difference in double precision: near the optimum v of the best code and the mean agree in many digits.
      x[e] = code < exist ? a.p[at + code] * float(double(a.v[at + code]) - centre) : 0.0f;
    }
    tile.add_codes(x, block, sums);
    if constexpr (!Tile::kInMemory) {
      if ((block % kFlushBlocks == kFlushBlocks - 1 || block == end - 1) && given_row < a.total) {
        tile.flush(sums, out, !first_flush(a.span, block + 1, begin));
      }
    }
  }
}

}  // namespace cplearn::cuda
