// The passes over all codes, one table per kind of tile; passes.cu is compiled once for each.
#pragma once

#include "arguments.h"

namespace cplearn::cuda {

enum class WeightedKernel : int { kGradient, kValue, kRow };

struct Passes {
  int block;    // codes of a tile
  int threads;  // that work on a tile
  int parts;    // partial results that a team leaves
  bool in_memory;  // products and weights of a span lie in memory (stored_tile.cuh)
  // Of the kernels that own rows: rows of a block of threads, and blocks that a multiprocessor holds, as registers
  // allow.
  int best_rows, best_resident;
  int weighted_rows, weighted_resident;
  void (*best_codes)(const Call&, const BestCodesArguments&, int splits);
  void (*column_sums)(const Call&, const ColumnSumsArguments&, int views, int splits);
  void (*weighted_codes)(const Call&, const WeightedCodesArguments&, WeightedKernel, int splits);
  void (*probabilities)(const Call&, const ProbabilitiesArguments&);
  void (*given_weights)(const Call&, const GivenWeightsArguments&, int splits);
};

// Hadamard blocks of 2^log2_block codes, 6 <= log2_block <= 13.
const Passes& hadamard_passes(int log2_block);
const Passes& stored_passes();

}  // namespace cplearn::cuda
