// The steps of ranks that share a dictionary's codes, one range after the other in one process.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../cpu/kernels.h"
#include "../formulas.h"
#include "random_case.h"

// One range of the codes of a case, and what is known of the rows.
struct Shard {
  int64_t start;
  cplearn::Codes codes;
  std::vector<double> best, others, scalars, expected, pull;
  std::vector<int64_t> code;

  Shard(const Case& test, int64_t start_, int64_t stop) : start(start_), codes(test.codes) {
    codes.num_codes = stop - start;
    codes.first_code += start;
    codes.packed += start * cplearn::words_of_code(codes);
  }
  cplearn::RowBests bests(int64_t row = 0) { return {best.data() + row, others.data() + row, code.data() + row}; }
  cplearn::ShardSums sums(std::vector<double>& of_rows) {
    return {of_rows.data(), expected.data(), pull.data(), 0};
  }
};

// Up to five ranges of random sizes, one block or one code at least.
inline std::vector<Shard> random_shards(Case& test) {
  const cplearn::Codes& codes = test.codes;
  const int64_t block = codes.kind == cplearn::CodeKind::kHadamard ? int64_t{1} << codes.log2_block : 1;
  const int64_t blocks = (codes.num_codes + block - 1) / block;
  std::vector<int64_t> edges{0, blocks};
  for (int64_t cuts = test.below(5); cuts > 0; --cuts) edges.push_back(test.below(blocks));
  std::sort(edges.begin(), edges.end());
  std::vector<Shard> shards;
  for (size_t i = 0; i + 1 < edges.size(); ++i) {
    if (edges[i] == edges[i + 1]) continue;
    shards.emplace_back(test, edges[i] * block, std::min(edges[i + 1] * block, codes.num_codes));
  }
  return shards;
}

// Pass 1 of every range, and in all of them the bests of the group: the first of equals is the best.
inline void find_bests(const cplearn::Kernels& kernels, std::vector<Shard>& shards, const cplearn::Batch* batches,
                       int num_batches, double temperature, const cplearn::Run& run) {
  const int64_t n = batches[0].rows, count = num_batches * n;
  for (Shard& shard : shards) {
    shard.best.resize(size_t(count)), shard.others.resize(size_t(count)), shard.code.resize(size_t(count));
    for (int view = 0; view < num_batches; ++view) {
      cplearn::RowBests found = shard.bests(view * n);
      kernels.row_sums(shard.codes, batches[view], temperature, run, found);
    }
  }
  for (size_t row = 0; row < size_t(count); ++row) {
    size_t winner = 0;
    for (size_t s = 1; s < shards.size(); ++s) {
      if (shards[s].best[row] > shards[winner].best[row]) winner = s;
    }
    const double best = shards[winner].best[row];
    double others = 0;
    for (size_t s = 0; s < shards.size(); ++s) {
      others += (shards[s].others[row] + (s != winner)) * std::exp2(shards[s].best[row] - best);
    }
    for (size_t s = 0; s < shards.size(); ++s) {
      shards[s].best[row] = best, shards[s].others[row] = others;
      if (s != winner) shards[s].code[row] = cplearn::kElsewhere;
    }
  }
}

inline void loss_by_shards(const cplearn::Kernels& kernels, std::vector<Shard> shards,
                           const cplearn::Batch (&views)[2], const cplearn::LossRequest& request,
                           const cplearn::Run& run, cplearn::LossResult& result) {
  find_bests(kernels, shards, views, 2, request.temperature, run);
  const size_t n = size_t(views[0].rows), size = n * size_t(shards[0].codes.num_features);
  std::vector<double> scalars(cplearn::kRowScalars * 2 * n), grad(2 * size);
  double cross_term = 0, prior = 0;
  for (Shard& shard : shards) {
    shard.scalars.resize(scalars.size());
    int64_t doubles = 0;
    if (request.need_grad) kernels.shard_size(shard.codes, int64_t(n), doubles);
    shard.expected.resize(size_t(doubles)), shard.pull.resize(size_t(doubles));
    cplearn::LossRequest own = request;
    if (own.prior_probs != nullptr) own.prior_probs += shard.start;
    cplearn::ShardSums sums = shard.sums(shard.scalars);
    kernels.shard_sums(shard.codes, views, shard.bests(), own, run, sums);
    prior += sums.prior / 2;
    for (size_t i = 0; i < scalars.size(); ++i) scalars[i] += shard.scalars[i];
  }
  for (size_t i = 0; i < 2 * n; ++i) cross_term += scalars[cplearn::kCrossTerm * 2 * n + i];
  result.invariance = std::log(double(shards[0].codes.total_codes)) - cross_term / double(2 * n);
  result.prior = prior;
  if (!request.need_grad) return;
  for (Shard& shard : shards) {
    std::vector<float> share(2 * size);
    kernels.shard_gradients(shard.codes, int64_t(n), shard.bests(), request.temperature, request.beta,
                            shard.sums(scalars), run, share.data());
    for (size_t i = 0; i < share.size(); ++i) grad[i] += share[i];
  }
  for (size_t i = 0; i < grad.size(); ++i) result.grad[i / size][i % size] = float(grad[i]);
}

inline void mean_assignment_by_shards(const cplearn::Kernels& kernels, std::vector<Shard> shards,
                                      const cplearn::Batch& batch, double temperature, const cplearn::Run& run,
                                      float* out) {
  find_bests(kernels, shards, &batch, 1, temperature, run);
  for (Shard& shard : shards) {
    kernels.shard_mean_assignment(shard.codes, batch, shard.bests(), temperature, run, out + shard.start);
  }
}
