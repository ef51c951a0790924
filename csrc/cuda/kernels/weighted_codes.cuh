// Pass 2 of a row: the sums over all codes of p times the code and of weights times the code, from which the expected
// code and all gradients are made (docs/mathematics.md; reference.cplearn_loss, expected_code and mean_assignment).
//
// A team goes over the blocks of one split. The row's best code is left out, and what it would have added is noted, for
// epilogue_sums.cu to put back in double precision. Float32 sums run over at most 32 blocks and are then added to
// doubles.
#pragma once

#include "../../formulas.h"
#include "../arguments.h"
#include "best_codes.cuh"
#include "column_sums.cuh"
#include "device.cuh"

namespace cplearn::cuda {

constexpr int kFlushBlocks = 32;

// Whether a split that began at block `begin` and has come to `end` writes its sums for the first time.
__device__ __forceinline__ bool first_flush(const Span& span, int end, int begin) {
  return span.first == 0 && (end - 1) / kFlushBlocks == begin / kFlushBlocks;
}

// The loss with its gradient, an instance for each prior because registers are short; its value; functions of one
// batch.
enum class Purpose { kGradient, kCrossEntropyGradient, kValue, kRow };

template <auto kValue>
struct Constant {
  static constexpr auto value = kValue;
};

// A block of threads holds pairs of teams, for an image's rows in both views, where tiles have partners.
template <class Tiles, Purpose kPurpose>
struct WeightedTeams {
  static constexpr bool kPairs = Tiles::template Of<1>::kHasPartner && kPurpose != Purpose::kRow;
  static constexpr int kGroup = kPairs ? 2 : 1;
  using Tile = typename Tiles::template Of<kGroup>;
  static constexpr int kThreads = Tile::kThreads * kGroup;  // of an item: a row, or its two
  static constexpr int kBlockThreads = kThreads > kLeastBlockThreads ? kThreads : kLeastBlockThreads;
  static constexpr int kPerBlock = kBlockThreads / Tile::kThreads;
  static constexpr int kSharedBytes = 4 * kPerBlock * (Tile::kSharedFloats + 2);
  // Two sets of 32 sums and a tile with its weights take 128 registers; 168 leave room for 384 threads. With blocks of
  // 1024 codes, and where weights go to memory, a few registers are missing at that, and there are 256 threads instead.
  static constexpr int kRoomFor = Tile::kBlock == 1024 || Tile::kInMemory ? 256 : 384;
  static constexpr int kBlocksPerProcessor =
      kPurpose == Purpose::kGradient && kRoomFor / kBlockThreads > 1 ? kRoomFor / kBlockThreads : 1;
};

// The sums of p and of the weights over at most kFlushBlocks blocks. Of a Hadamard tile only the first thread knows
// them, and it keeps them in shared memory: two registers less in all the others, which have none to spare.
template <bool kInRegisters>
class ScalarSums {
 public:
  __device__ ScalarSums(Shared place, bool leads) : place_(place), leads_(leads) { clear(); }
  __device__ void clear() {
    if constexpr (kInRegisters) values_[0] = values_[1] = 0;
    else if (leads_) place_.store(0, 0.0f), place_.store(1, 0.0f);
  }
  __device__ void add(int which, float value) {
    if constexpr (kInRegisters) values_[which] += value;
    else if (leads_) place_.store(which, place_.load(which) + value);
  }
  __device__ float of_thread(int which) const {
    if constexpr (kInRegisters) return values_[which];
    else return leads_ ? place_.load(which) : 0.0f;
  }

 private:
  float values_[kInRegisters ? 2 : 1];
  Shared place_;
  bool leads_;
};
enum { kMass, kWeight };

// What a row's logits are made probabilities with.
struct RowConstants {
  float best, inverse_sum, shift;
  __device__ RowConstants(const RowState& rows, int64_t row)
      : best(rows.best[row]), inverse_sum(rows.inverse_sum[row]), shift(rows.shift[row]) {}
  __device__ float u(float s) const { return below_best(s, best) + shift; }
  __device__ float p(float s) const { return exp2_fast(below_best(s, best)) * inverse_sum; }
};

// The weight of a code as far as it needs no partner: under reverse KL p g, under cross entropy the same product
// without 1 / p̄, and `p (y - centre)` where y is a number per code or a product with the second array's row.
template <Weights kWeights>
__device__ __forceinline__ float prior_weight(float p, float u, float slope, float top, float product, float centre) {
  switch (kWeights) {
    case Weights::kReverseKL: return p * slope;
    case Weights::kCrossEntropy: return exp2_fast(below_best(u, top)) * slope;
    case Weights::kPerCode: return p * (slope - centre);
    case Weights::kProducts: return p * (product - centre);
    default: return 0;
  }
}

template <class Tiles, Purpose kPurpose>
__global__ void __launch_bounds__(WeightedTeams<Tiles, kPurpose>::kBlockThreads,
                                  WeightedTeams<Tiles, kPurpose>::kBlocksPerProcessor)
    weighted_codes(const WeightedCodesArguments a) {
  using W = WeightedTeams<Tiles, kPurpose>;
  using Tile = typename W::Tile;
  using T = Teams<Tile>;
  constexpr bool kLoss = kPurpose != Purpose::kRow, kPairs = W::kPairs;
  const int team = int(threadIdx.x) / Tile::kThreads;
  const uint32_t items = uint32_t(kPairs ? a.per_view : a.total);
  const auto item = [&] {
    return made_anew(blockIdx.x) * (W::kPerBlock / W::kGroup) + made_anew(threadIdx.x) / W::kThreads;
  };
  const auto exists = [&] { return item() < items; };
  const auto my_row = [&] {
    const uint32_t inside = exists() ? item() : items - 1;  // the last block's spare teams repeat a row
    return kPairs && made_anew(threadIdx.x) / Tile::kThreads % 2 != 0 ? inside + items : inside;
  };
  const auto partner_of = [&](int64_t row) { return row < a.per_view ? row + a.per_view : row - a.per_view; };

  Tile tile(a.tile, team);
  typename Tile::Sums pull, expected;
  if constexpr (Tile::kInMemory) {
    pull.row = my_row(), expected.row = a.tile.weight_rows + pull.row;
  } else if constexpr (kPurpose != Purpose::kValue) {
    tile.clear(pull), tile.clear(expected);
  }
  ScalarSums<Tile::kInMemory> scalars(shared_memory() + (W::kPerBlock * Tile::kSharedFloats + 2 * team),
                                      tile.thread() == 0);
  float cross_terms = 0;  // of p u', every thread's own

  // Made anew, like the addresses below, each time it is asked for.
  const auto end = [&] {
    const int blocks = (int(made_anew(uint32_t(a.span.count))) + Tile::kBlock - 1) / Tile::kBlock;
    const int split_end = (int(made_anew(blockIdx.y)) + 1) * a.blocks_per_split;
    return split_end < blocks ? split_end : blocks;
  };
  int block = int(blockIdx.y) * a.blocks_per_split;
  bool more = block < end();
#pragma unroll 1
  while (more) {
    // Addresses are made and the row's constants are loaded anew for each block: kept, they would take more registers
    // than there are.
    const int64_t row = my_row();
    const RowConstants own(a.rows, row);
    const int best_code = int(a.rows.code[row] - a.span.first);
    const int64_t view = kLoss && row >= a.per_view ? 1 : 0;
    const float* const slope = a.slope + view * a.column_stride;
    const float* const top = a.top + view * a.column_stride;

    // x first holds the partner's products, or those with the second array.
    float s[kElements], x[kElements];
    if constexpr (kLoss && !kPairs) tile.logits(a.tile.rows, partner_of(row), block, x);
    if constexpr (!kLoss) {
      if (a.weights == Weights::kProducts) tile.logits(a.second, row, block, x);
    }
    tile.logits(a.tile.rows, row, block, s);

    const int first = block * Tile::kBlock, exist = a.span.count - first;
    if (exist < Tile::kBlock) {
#pragma unroll
      for (int e = 0; e < kElements; ++e) s[e] = tile.code(e) < exist ? s[e] : kNoLogit;
    }
    const RowConstants partner(a.rows, kLoss ? partner_of(row) : row);
    const float centre = !kLoss && a.weights != Weights::kNone ? a.centre[row] : 0.0f;
    // The best code: noted by the one thread that has it, then left out.
    const int best = best_code >= first && best_code < first + Tile::kBlock ? tile.element_of(best_code - first) : -1;
    if (kLoss && best >= 0) {
      float best_s = 0, best_product = 0;
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        if (e == best) best_s = s[e], best_product = x[e];
      }
      const float u = own.u(best_s), g = slope[best_code];
      a.best_weight[row] =
          a.weights == Weights::kReverseKL
              ? prior_weight<Weights::kReverseKL>(own.p(best_s), u, g, 0, 0, 0)
              : prior_weight<Weights::kCrossEntropy>(0, u, g, top[best_code], 0, 0);
      if (!kPairs) a.best_partner[row] = partner.u(best_product);
    }
    if (!kPairs && best >= 0) {
#pragma unroll
      for (int e = 0; e < kElements; ++e) s[e] = e == best ? kNoLogit : s[e];
    }

    PartedSum<2> cross_term;
    const auto weigh = [&](auto weights) {
      constexpr Weights kWeights = decltype(weights)::value;
#pragma unroll
      for (int e = 0; e < kElements; e += 4) {
        float4 g{}, t{};
        if constexpr (kLoss || kWeights == Weights::kPerCode) g = tile.of_codes(slope + first, e);
        if constexpr (kWeights == Weights::kCrossEntropy) t = tile.of_codes(top + first, e);
        const float slopes[4] = {g.x, g.y, g.z, g.w}, tops[4] = {t.x, t.y, t.z, t.w};
        float u[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float product = x[e + i];
          u[i] = own.u(s[e + i]);
          s[e + i] = own.p(s[e + i]);
          x[e + i] = prior_weight<kWeights>(s[e + i], u[i], slopes[i], tops[i], product, centre);
          if constexpr (kLoss && !kPairs) {
            const float cross = s[e + i] * partner.u(product);
            cross_term.add(i, cross);
            x[e + i] = pull_weight(x[e + i], a.beta_ln2, cross);
          }
        }
        if constexpr (kPairs) tile.offer(e, u[0], u[1], u[2], u[3]);
      }
    };
    if constexpr (kLoss) {
      if constexpr (kPurpose == Purpose::kGradient) weigh(Constant<Weights::kReverseKL>());
      else if constexpr (kPurpose == Purpose::kCrossEntropyGradient) weigh(Constant<Weights::kCrossEntropy>());
      else if (a.weights == Weights::kReverseKL) weigh(Constant<Weights::kReverseKL>());
      else weigh(Constant<Weights::kCrossEntropy>());
    } else {
      if (a.weights == Weights::kNone) weigh(Constant<Weights::kNone>());
      else if (a.weights == Weights::kPerCode) weigh(Constant<Weights::kPerCode>());
      else weigh(Constant<Weights::kProducts>());
    }
    if constexpr (kPairs) {
      tile.meet();
      if (best >= 0) {
        // Only now: the partner wanted this code's u.
        a.best_partner[row] = tile.partner(best);
#pragma unroll
        for (int e = 0; e < kElements; ++e) s[e] = e == best ? 0.0f : s[e], x[e] = e == best ? 0.0f : x[e];
      }
#pragma unroll
      for (int e = 0; e < kElements; e += 4) {
        const float4 four = tile.partner4(e);
        const float u[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float cross = s[e + i] * u[i];
          cross_term.add(i, cross);
          x[e + i] = pull_weight(x[e + i], a.beta_ln2, cross);
        }
      }
      tile.turn_page();
    }

    cross_terms += cross_term.total();
    if constexpr (kPurpose != Purpose::kValue) {
      if (kLoss || a.weights != Weights::kNone) scalars.add(kWeight, tile.add_codes(x, block, pull));
      scalars.add(kMass, tile.add_codes(s, block, expected));
    }
    ++block;
    more = block < end();
    if (block % kFlushBlocks != 0 && more) continue;
    if constexpr (kPurpose != Purpose::kValue && !Tile::kInMemory) {
      if (exists()) {
        const uint32_t split = made_anew(blockIdx.y);
        double* const out = a.sums + (int64_t(split) * 2 * a.total + row) * Tile::kBlock;
        const bool add = !first_flush(a.span, block, int(split) * a.blocks_per_split);
        tile.flush(pull, out, add);
        tile.flush(expected, out + int64_t(a.total) * Tile::kBlock, add);
      }
    }
    float mass = scalars.of_thread(kMass), weight = scalars.of_thread(kWeight);
#pragma unroll
    for (int mask = 1; mask < T::kLanes; mask <<= 1) {
      if constexpr (Tile::kInMemory) mass += shuffle_xor(mass, mask), weight += shuffle_xor(weight, mask);
      cross_terms += shuffle_xor(cross_terms, mask);
    }
    if (exists() && tile.thread() % T::kLanes == 0) {
      const int part = int(made_anew(blockIdx.y)) * T::kParts +
                       int(made_anew(threadIdx.x)) % Tile::kThreads / T::kLanes;
      const int64_t at = int64_t(part) * a.total + row;
      atomic_add(a.mass + at, double(mass));
      atomic_add(a.weight + at, double(weight));
      atomic_add(a.cross_term + at, double(cross_terms));
    }
    cross_terms = 0;
    scalars.clear();
  }
}

}  // namespace cplearn::cuda
