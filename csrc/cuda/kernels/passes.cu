// The kernels of passes.h for one kind of tile: CPK_LOG2_BLOCK is 6 to 13 for Hadamard blocks, 0 for stored products.
#include "../passes.h"

#include "../launch.cuh"
#include "best_codes.cuh"
#include "column_sums.cuh"
#include "given_weights.cuh"
#include "hadamard_tile.cuh"
#include "stored_tile.cuh"
#include "weighted_codes.cuh"

#define CPK_JOIN_NOW(a, b) a##b
#define CPK_JOIN(a, b) CPK_JOIN_NOW(a, b)

namespace cplearn::cuda {
namespace {

#if CPK_LOG2_BLOCK == 0
using Tiles = StoredTiles;
#else
using Tiles = HadamardTiles<CPK_LOG2_BLOCK>;
#endif
using Tile = Tiles::Of<1>;
using T = Teams<Tile>;
using W = WeightedTeams<Tiles, Purpose::kGradient>;

void launch_best_codes(const Call& call, const BestCodesArguments& a, int splits) {
  launch("best_codes", best_codes<Tile>, {unsigned(ceil_div(a.total, T::kPerBlock)), unsigned(splits)},
         T::kBlockThreads, T::kSharedBytes, call, a);
}

void launch_column_sums(const Call& call, const ColumnSumsArguments& a, int views, int splits) {
  const unsigned blocks = unsigned(ceil_div(ceil_div(a.span.count, Tile::kBlock), T::kPerBlock));
  const dim3 grid{blocks, unsigned(splits), unsigned(views)};
  if (a.top != nullptr) {
    launch("column_sums of logs", column_sums<Tile, true>, grid, T::kBlockThreads, T::kSharedBytes, call, a);
  } else {
    launch("column_sums", column_sums<Tile, false>, grid, T::kBlockThreads, T::kSharedBytes, call, a);
  }
}

template <Purpose kPurpose>
void launch_weighted(const char* name, const Call& call, const WeightedCodesArguments& a, int splits) {
  using W = WeightedTeams<Tiles, kPurpose>;
  const int64_t items = W::kPairs ? a.per_view : a.total;
  const dim3 grid{unsigned(ceil_div(items, W::kPerBlock / W::kGroup)), unsigned(splits)};
  launch(name, weighted_codes<Tiles, kPurpose>, grid, W::kBlockThreads, W::kSharedBytes, call, a);
}

void launch_weighted_codes(const Call& call, const WeightedCodesArguments& a, WeightedKernel kernel, int splits) {
  switch (kernel) {
    case WeightedKernel::kGradient:
      if (a.weights == Weights::kReverseKL) {
        return launch_weighted<Purpose::kGradient>("weighted_codes of reverse KL", call, a, splits);
      }
      return launch_weighted<Purpose::kCrossEntropyGradient>("weighted_codes of cross entropy", call, a, splits);
    case WeightedKernel::kValue: return launch_weighted<Purpose::kValue>("weighted_codes of a value", call, a, splits);
    case WeightedKernel::kRow: return launch_weighted<Purpose::kRow>("weighted_codes of one batch", call, a, splits);
  }
}

void launch_probabilities(const Call& call, const ProbabilitiesArguments& a) {
  const unsigned blocks = unsigned(ceil_div(a.span.count, Tile::kBlock));
  launch("probabilities", probabilities<Tile>, {blocks, unsigned(ceil_div(a.total, T::kPerBlock))}, T::kBlockThreads,
         T::kSharedBytes, call, a);
}

void launch_given_weights(const Call& call, const GivenWeightsArguments& a, int splits) {
  launch("given_weights", given_weights<Tile>, {unsigned(ceil_div(a.total, T::kPerBlock)), unsigned(splits)},
         T::kBlockThreads, T::kSharedBytes, call, a);
}

constexpr Passes kPasses{Tile::kBlock,
                         Tile::kThreads,
                         T::kParts,
                         Tile::kInMemory,
                         T::kPerBlock,
                         512 / T::kBlockThreads,  // at most 128 registers a thread
                         W::kPerBlock,
                         W::kBlocksPerProcessor,
                         launch_best_codes,
                         launch_column_sums,
                         launch_weighted_codes,
                         launch_probabilities,
                         launch_given_weights};

}  // namespace

const Passes& CPK_JOIN(passes_, CPK_LOG2_BLOCK)() { return kPasses; }

}  // namespace cplearn::cuda
