// Pass 1: each row's best code and the sum of 2^(logit - best) over the others (reference.projector_logsumexp).
//
// A team goes over the blocks of one split. The best code is that of all of a team's lanes in a warp: were it each
// thread's own, some lane of a warp would find a new one in most rounds, and all would wait for it. Partial results are
// merged in a fixed order by epilogue.cu.
#pragma once

#include <cmath>

#include "../../formulas.h"
#include "../arguments.h"
#include "device.cuh"
#include "hadamard_tile.cuh"

namespace cplearn::cuda {

constexpr int32_t kNoCode = 0x7fffffff;

// Threads of a block of the passes without a partner, for a tile of any size.
template <class Tile>
struct Teams {
  static constexpr int kBlockThreads = Tile::kThreads > kLeastBlockThreads ? Tile::kThreads : kLeastBlockThreads;
  static constexpr int kPerBlock = kBlockThreads / Tile::kThreads;
  static constexpr int kSharedBytes = 4 * kPerBlock * Tile::kSharedFloats;
  // Partial results per team: one of each warp.
  static constexpr int kParts = Tile::kThreads > 32 ? Tile::kThreads / 32 : 1;
  static constexpr int kLanes = Tile::kThreads > 32 ? 32 : Tile::kThreads;
};

template <class Tile>
__global__ void __launch_bounds__(Teams<Tile>::kBlockThreads) best_codes(const BestCodesArguments a) {
  using T = Teams<Tile>;
  const int team = int(threadIdx.x) / Tile::kThreads;
  const auto given_row = [&] {
    return int(made_anew(blockIdx.x)) * T::kPerBlock + int(made_anew(threadIdx.x)) / Tile::kThreads;
  };
  const int row = given_row() < a.total ? given_row() : a.total - 1;  // the last block's spare teams repeat a row
  Tile tile(a.tile, team);
  struct {
    float best;
    int32_t code;
  } found{kNoLogit, kNoCode};
  double others = 0;  // of this thread's codes
  const int blocks = (a.span.count + Tile::kBlock - 1) / Tile::kBlock;
  const int begin = int(blockIdx.y) * a.blocks_per_split;
  const int end = begin + a.blocks_per_split < blocks ? begin + a.blocks_per_split : blocks;
#pragma unroll 1
  for (int block = begin; block < end; ++block) {
    float s[kElements];
    tile.logits(a.tile.rows, row, block, s);
    const int first = block * Tile::kBlock, exist = a.span.count - first;
    if (exist < Tile::kBlock) {
#pragma unroll
      for (int e = 0; e < kElements; ++e) s[e] = tile.code(e) < exist ? s[e] : kNoLogit;
    }
    float largest[4] = {s[0], s[1], s[2], s[3]};
#pragma unroll
    for (int e = 4; e < kElements; ++e) largest[e % 4] = fmaxf(largest[e % 4], s[e]);
    float top = fmaxf(fmaxf(largest[0], largest[1]), fmaxf(largest[2], largest[3]));
#pragma unroll
    for (int mask = 1; mask < T::kLanes; mask <<= 1) top = fmaxf(top, shuffle_xor(top, mask));
    if (warp_ballot(top > found.best) != 0) {
      // The old best joins the others, in one lane; the first of the new ones stays out.
      int code = kNoCode;
#pragma unroll
      for (int e = 0; e < kElements; ++e) code = s[e] == top && tile.code(e) < code ? tile.code(e) : code;
      const int mine = code;
#pragma unroll
      for (int mask = 1; mask < T::kLanes; mask <<= 1) {
        const int other = shuffle_xor(code, mask);
        code = other < code ? other : code;
      }
      if (top > found.best) {
        const bool leads = tile.thread() % T::kLanes == 0 && found.code != kNoCode;
        others = (others + (leads ? 1 : 0)) * double(exp2_fast(found.best - top));
        found.best = top;
        found.code = int32_t(a.span.first) + first + code;
        if (mine == code) {
#pragma unroll
          for (int e = 0; e < kElements; ++e) s[e] = tile.code(e) == code ? kNoLogit : s[e];
        }
      }
    }
    PartedSum<4> sum;
#pragma unroll
    for (int e = 0; e < kElements; ++e) sum.add(e, exp2_fast(s[e] - found.best));
    others += double(sum.total());
  }
#pragma unroll
  for (int mask = 1; mask < T::kLanes; mask <<= 1) others += shuffle_xor(others, mask);
  if (given_row() < a.total && tile.thread() % T::kLanes == 0) {
    const int64_t part = int64_t(blockIdx.y) * T::kParts + tile.thread() / T::kLanes;
    const int64_t at = part * a.total + given_row();
    a.best[at] = found.best, a.others[at] = others, a.code[at] = found.code;
  }
}

}  // namespace cplearn::cuda
