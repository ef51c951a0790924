// The last step of the CPLearn loss: the gradients of all rows from their sums over codes, each row's best code put
// back (docs/mathematics.md).
#pragma once

#include <cstdint>

#include "../../formulas.h"
#include "../kernels.h"
#include "../layout.h"
#include "../rows/pass.h"
#include "../vector.h"
#include "../workers.h"

namespace cplearn::CPK_TARGET {

// What the gradients of a tile's rows are made of besides their sums of codes. `best_p` and `best_weight` are 0 where
// the best code is another rank's, which adds it; everything else is the same on all ranks.
struct BestShares {
  double best_p[kLanes] = {}, inverse_mass[kLanes] = {}, best_weight[kLanes] = {}, weight_sum[kLanes] = {};

  BestShares(const Tiling& tiling, const RowSums& rows, const double* scalars, double beta, int view, int64_t tile) {
    const int64_t count = 2 * tiling.rows, first = tile * kLanes;
    for (int64_t lane = 0; lane < smaller(kLanes, tiling.rows - first); ++lane) {
      const int64_t i = tiling.lane_of(view, first + lane);
      const double* const of_row = scalars + view * tiling.rows + first + lane;
      const BestShare share =
          best_share(rows.others[i], of_row[kMassOfOthers * count], of_row[kWeightsOfOthers * count],
                     of_row[kBestPriorWeight * count], beta, of_row[kBestPartnerU * count]);
      const bool is_here = rows.code[i] != kElsewhere;
      best_p[lane] = is_here ? share.p : 0, best_weight[lane] = is_here ? share.weight : 0;
      inverse_mass[lane] = share.inverse_mass, weight_sum[lane] = share.weight_sum;
    }
  }
};

// `1/(2 n temperature) [E - (sigma - beta t) B + beta (B - B')]`, B' the partner's, best codes put back: best_share and
// what follows it in formulas.h. `scalars` are sums over all codes (RowScalar), `sums.expected` and `sums.pull` those
// over the codes of this range (LossPass); the results add up over ranges.
template <class Blocks, class Sums>
static void write_gradients(const Blocks& dictionary, const Tiling& tiling, const RowSums& rows, const double* scalars,
                            const Sums& sums, double temperature, double beta, const Run& run,
                            float* const (&grad)[2]) {
  const double scale = 1 / (2.0 * double(tiling.rows) * temperature);
  const int64_t scratch_floats = padded(dictionary.places * kLanes);
  const Buffer<float> scratch(2 * run.threads * scratch_floats);
  in_parallel(run.threads, [&](int64_t worker, int64_t workers) {
    // The best codes of the two views' rows, then their gradients.
    float* const out[2] = {scratch + 2 * worker * scratch_floats, scratch + (2 * worker + 1) * scratch_floats};
    const Share mine(tiling.per_batch, worker, workers);
    for (int64_t tile = mine.begin; tile < mine.end; ++tile) {
      const BestShares shares[2] = {{tiling, rows, scalars, beta, 0, tile}, {tiling, rows, scalars, beta, 1, tile}};
      for (int view = 0; view < 2; ++view) {
        int64_t codes[kLanes];
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          codes[lane] = larger(rows.code[tiling.lane_of(view, tile * kLanes) + lane], 0);
        }
        dictionary.write_codes(codes, out[view]);
      }
      for (int64_t i = 0; i < dictionary.places * kLanes; i += kLanes) {
        VecDouble expected[2], pull[2];
#pragma GCC unroll 2
        for (int view = 0; view < 2; ++view) {
          const BestShares& from = shares[view];
          const VecDouble code = widened(load(out[view] + i));
          expected[view] = expected_coordinate(sums.expected(view, tile, i), load_doubles(from.best_p),
                                               load_doubles(from.inverse_mass), code);
          pull[view] = sums.pull(view, tile, i) + load_doubles(from.best_weight) * code;
        }
#pragma GCC unroll 2
        for (int view = 0; view < 2; ++view) {
          const VecDouble sum = gradient_coordinate(pull[view], load_doubles(shares[view].weight_sum), expected[view],
                                                    expected[1 - view], beta);
          store(out[view] + i, narrowed(scale * sum));
        }
      }
      for (int view = 0; view < 2; ++view) {
        store_rows(dictionary, out[view], tile * kLanes, tiling.rows, grad[view]);
      }
    }
  });
}

}  // namespace cplearn::CPK_TARGET
