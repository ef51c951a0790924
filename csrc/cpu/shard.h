// One range of codes against all rows of a group of ranks, in steps between which the ranks combine what they found:
// row_sums, then shard_sums and shard_gradients for the loss, or shard_mean_assignment.
#pragma once

#include <cmath>
#include <cstdint>

#include "../formulas.h"
#include "kernels.h"
#include "layout.h"
#include "loss/gradients.h"
#include "loss/pass.h"
#include "rows/functions.h"
#include "rows/pass.h"
#include "vector.h"
#include "workers.h"

namespace cplearn::CPK_TARGET {

template <class Blocks>
static void row_sums(const Blocks& dictionary, const Batch& batch, double temperature, const Run& run,
                     RowBests& out) {
  const SummedRows found(dictionary, batch, temperature, run);
  const RowSums& sums = found.sums;
  for (int64_t i = 0; i < batch.rows; ++i) {
    out.best[i] = sums.best[i], out.others[i] = sums.others[i], out.code[i] = sums.code[i];
    if (found.rows.finite) continue;
    const float* const row = batch.data + i * dictionary.num_features;
    bool finite = true;
    for (int64_t k = 0; k < dictionary.num_features; ++k) finite &= row[k] - row[k] == 0;
    if (!finite) out.best[i] = out.others[i] = NAN;
  }
}

// What the group knows, by lane.
static inline void spread(const RowBests& bests, const Tiling& tiling, int64_t total_codes, const RowSums& out) {
  for (int64_t i = 0; i < tiling.count * kLanes; ++i) {
    const int64_t padded_rows = tiling.per_batch * kLanes, row = i / padded_rows * tiling.rows + i % padded_rows;
    if (tiling.is_padding(i)) out.set(i, 0, 0, kElsewhere, true, total_codes);
    else out.set(i, float(bests.best[row]), bests.others[row], bests.code[row], false, total_codes);
  }
}

template <class Blocks>
static void shard_mean_assignment(const Blocks& dictionary, const Batch& batch, const RowBests& bests,
                                  double temperature, const Run& run, float* out) {
  const Tiles rows(dictionary, &batch, 1, kLog2E / temperature, run.threads);
  const RowSums sums(rows);
  spread(bests, rows, dictionary.total_codes, sums);
  means_of_codes(dictionary, rows, sums, run, out);
}

// The sums of codes that a LossPass has found, kept for write_gradients: [view][tile][place][lane].
struct KeptSums {
  int64_t tiles, places;  // of one view; floats of a tile
  double* kept_expected;
  double* kept_pull;

  template <class Blocks>
  KeptSums(const Blocks& dictionary, const Tiling& tiling, const ShardSums& sums)
      : tiles(tiling.per_batch),
        places(dictionary.places * kLanes),
        kept_expected(sums.expected),
        kept_pull(sums.pull) {}

  int64_t size() const { return 2 * tiles * places; }

  template <class Pass>
  void keep(const Pass& pass, int threads) const {
    in_parallel(threads, [&](int64_t worker, int64_t workers) {
      const Share mine(2 * tiles, worker, workers);
      for (int64_t t = mine.begin; t < mine.end; ++t) {
        const int view = int(t / tiles);
        for (int64_t i = 0; i < places; i += kLanes) {
          store_doubles(kept_expected + t * places + i, pass.expected(view, t % tiles, i));
          store_doubles(kept_pull + t * places + i, pass.pull(view, t % tiles, i));
        }
      }
    });
  }
  CPK_INLINE VecDouble expected(int view, int64_t tile, int64_t i) const {
    return load_doubles(kept_expected + (view * tiles + tile) * places + i);
  }
  CPK_INLINE VecDouble pull(int view, int64_t tile, int64_t i) const {
    return load_doubles(kept_pull + (view * tiles + tile) * places + i);
  }
};

template <class Blocks>
static void shard_size(const Blocks& dictionary, int64_t rows, int64_t& doubles) {
  doubles = KeptSums(dictionary, Tiling(rows, 2), {}).size();
}

template <class Blocks>
static void shard_sums(const Blocks& dictionary, const Batch (&views)[2], const RowBests& bests,
                       const LossRequest& request, const Run& run, ShardSums& out) {
  const Tiles rows(dictionary, views, 2, kLog2E / request.temperature, run.threads);
  const KeptSums kept(dictionary, rows, out);
  if (!rows.finite) {
    out.prior = NAN;
    for (int64_t i = 0; i < kRowScalars * 2 * rows.rows; ++i) out.scalars[i] = NAN;
    for (int64_t i = 0; request.need_grad && i < kept.size(); ++i) out.expected[i] = out.pull[i] = NAN;
    return;
  }
  const RowSums sums(rows);
  spread(bests, rows, dictionary.total_codes, sums);
  with_loss_pass(dictionary, rows, sums, request, run, [&](const auto& pass) {
    pass.write_scalars(out.scalars);
    out.prior = pass.prior();
    if (request.need_grad) kept.keep(pass, run.threads);
  });
}

template <class Blocks>
static void shard_gradients(const Blocks& dictionary, int64_t rows, const RowBests& bests, double temperature,
                            double beta, const ShardSums& found, const Run& run, float* grad) {
  const Tiling tiling(rows, 2);
  const RowSums sums(tiling);
  spread(bests, tiling, dictionary.total_codes, sums);
  float* const grads[2] = {grad, grad + rows * dictionary.num_features};
  const KeptSums kept(dictionary, tiling, found);
  write_gradients(dictionary, tiling, sums, found.scalars, kept, temperature, beta, run, grads);
}

}  // namespace cplearn::CPK_TARGET
