// Pass 2 of the CPLearn loss: all rows of a group of codes at once, so that p̄ and the prior's derivative are complete
// there, and with them the weights of the gradient (reference.cplearn_loss; the identities are in docs/mathematics.md).
#pragma once

#include <cmath>
#include <cstdint>

#include "../../formulas.h"
#include "../codes/walsh_hadamard.h"
#include "../kernels.h"
#include "../layout.h"
#include "../rows/pass.h"
#include "../vector.h"
#include "../workers.h"
#include "columns.h"
#include "gradients.h"
#include "streams.h"

namespace cplearn::CPK_TARGET {

// Tiles of the two views lie one after the other. Tile t of view 0 and tile t of view 1 hold the same images and belong
// to one worker, so that the partner's u is at hand; an item of the schedule is such a pair in one split.
//
// A round has three steps with a barrier between them: (probabilities) each item's p and u; (columns) each code's p̄
// and g from all rows; (gradients) each item's sums. The columns are cut into units of a fixed size, each summed by one
// worker, so that the prior does not depend on the number of threads either.
template <class Blocks, Prior kPrior>
class LossPass {
 public:
  LossPass(const Blocks& dictionary, const Tiles& rows, const RowSums& sums, const LossRequest& request, const Run& run)
      : dictionary_(dictionary),
        rows_(rows),
        sums_(sums),
        request_(request),
        run_(run),
        plan_(dictionary, rows.per_batch),
        tile_(plan_.block * kLanes),
        group_(padded(plan_.group * tile_)),
        group_codes_(plan_.group * plan_.block),
        units_(ceil_div(group_codes_, kColumnUnit)),
        places_(dictionary.places * kLanes),
        sums_floats_(padded(places_)),
        scratch_floats_(padded(larger(tile_, places_))),
        p_(2 * plan_.items() * group_),
        u_(2 * plan_.items() * group_, 3),
        g_(2 * plan_.splits * group_codes_),
        column_max_(2 * plan_.splits * group_codes_),
        signs_(2 * plan_.splits * plan_.group * dictionary.signs),
        scratch_(run.threads * scratch_floats_, 5),
        expected_(request.need_grad ? 2 * plan_.items() * sums_floats_ : 0, 7),
        pull_(request.need_grad ? 2 * plan_.items() * sums_floats_ : 0, 9),
        flushes_(request.need_grad && plan_.split_blocks > dictionary.flush_blocks),
        flushed_expected_(flushes_ ? 2 * plan_.items() * sums_floats_ : 0),
        flushed_pull_(flushes_ ? 2 * plan_.items() * sums_floats_ : 0),
        mass_(2 * plan_.items() * kLanes),
        weight_sum_(2 * plan_.items() * kLanes),
        cross_term_(2 * plan_.items() * kLanes),
        best_prior_weight_(rows.count * kLanes),
        best_partner_u_(rows.count * kLanes),
        prior_(2 * plan_.splits * units_) {
    expected_.fill(0.0f), pull_.fill(0.0f), flushed_expected_.fill(0.0), flushed_pull_.fill(0.0);
    mass_.fill(0.0), weight_sum_.fill(0.0), cross_term_.fill(0.0), prior_.fill(0.0);
    best_prior_weight_.fill(0.0), best_partner_u_.fill(0.0);
  }

  void run() {
    Interruption interruption(run_);
    in_parallel(run_.threads, [&](int64_t worker, int64_t workers) {
      const Share items(plan_.items(), worker, workers);
      const Share units(2 * plan_.splits * units_, worker, workers);
      prepare(0, worker, workers);
      barrier_.wait(workers);
      for (int64_t round = 0; round < plan_.rounds && !interruption.before(worker, round); ++round) {
        for (int64_t item = items.begin; item < items.end; ++item) probabilities(item, round);
        barrier_.wait(workers);
        for (int64_t unit = units.begin; unit < units.end; ++unit) columns(unit, round);
        prepare(round + 1, worker, workers);
        barrier_.wait(workers);
        float* const scratch = scratch_ + worker * scratch_floats_;
        for (int64_t item = items.begin; item < items.end; ++item) gradients(item, round, scratch);
      }
    });
    interruption.throw_if_interrupted();
  }

  // What the pass has found, once it has run: each row's sums over codes (RowScalar), the prior's terms of both views,
  // and place `i / kLanes` of the sums of codes, all but best ones, of a tile's rows: B's `expected`, E's `pull`.
  void write_scalars(double* out) const {
    const int64_t count = 2 * rows_.rows;
    for (int view = 0; view < 2; ++view) {
      for (int64_t row = 0; row < rows_.rows; ++row) {
        const int64_t lane = rows_.lane_of(view, row), to = view * rows_.rows + row;
        out[kCrossTerm * count + to] =
            kLn2 * (total(cross_term_, view, row) + best_partner_u_[lane] / (1 + sums_.others[lane]));
        out[kMassOfOthers * count + to] = total(mass_, view, row);
        out[kWeightsOfOthers * count + to] = total(weight_sum_, view, row);
        out[kBestPriorWeight * count + to] = best_prior_weight_[lane];
        out[kBestPartnerU * count + to] = best_partner_u_[lane];
      }
    }
  }
  double prior() const {
    double sum = 0;
    for (int64_t i = 0; i < 2 * plan_.splits * units_; ++i) sum += prior_[i];
    return sum;
  }
  CPK_INLINE VecDouble expected(int view, int64_t tile, int64_t i) const {
    return sum_over_splits(expected_, flushed_expected_, view, tile, i);
  }
  CPK_INLINE VecDouble pull(int view, int64_t tile, int64_t i) const {
    return sum_over_splits(pull_, flushed_pull_, view, tile, i);
  }

 private:
  // Signs of two rounds are kept: the next round's are made while this round's are still in use.
  uint32_t* signs(int64_t round, int64_t split, int64_t b) const {
    return signs_ + ((round % 2 * plan_.splits + split) * plan_.group + b) * dictionary_.signs;
  }
  // Arrays of one view of an item: p, u (`size` = group_) and the sums (`size` = sums_floats_).
  int64_t at(int view, int64_t item, int64_t size) const { return (view * plan_.items() + item) * size; }
  int64_t columns_at(int view, int64_t split) const { return (view * plan_.splits + split) * group_codes_; }

  void prepare(int64_t round, int64_t worker, int64_t workers) {
    const Share mine(plan_.splits * plan_.group, worker, workers);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const int64_t split = i / plan_.group, b = i % plan_.group;
      if (b >= plan_.blocks_in(split, round)) continue;
      dictionary_.prepare(plan_.first_block(split, round) + b, signs(round, split, b), request_.need_grad);
    }
  }

  void probabilities(int64_t item, int64_t round) {
    const int64_t split = item / plan_.tiles, tile = item % plan_.tiles;
    for (int view = 0; view < 2; ++view) {
      const int64_t row_tile = view * plan_.tiles + tile;
      for (int64_t b = 0; b < plan_.blocks_in(split, round); ++b) {
        float* const u = u_ + (at(view, item, group_) + b * tile_);
        StoreProbabilities sink{load(sums_.best + row_tile * kLanes), load(sums_.inverse_sum + row_tile * kLanes),
                                load(sums_.log2_mean + row_tile * kLanes), p_ + (at(view, item, group_) + b * tile_), u,
                                plan_.codes_in(plan_.first_block(split, round) + b)};
        dictionary_.logits(rows_.tile(row_tile), signs(round, split, b), sink, u);
      }
    }
  }

  void columns(int64_t unit, int64_t round) {
    const int view = int(unit / (plan_.splits * units_));
    const int64_t split = unit / units_ % plan_.splits, begin = unit % units_ * kColumnUnit;
    const int64_t blocks = plan_.blocks_in(split, round), first_code = plan_.first_block(split, round) * plan_.block;
    const int64_t written = smaller(begin + kColumnUnit, blocks * plan_.block);
    const int64_t existing = smaller(written, plan_.num_codes - first_code), end = larger(existing, begin);
    const float* q = request_.prior_probs == nullptr ? nullptr : request_.prior_probs + first_code;
    const int64_t first = at(view, split * plan_.tiles, group_);
    const Columns here{plan_.tiles, group_, rows_.rows, dictionary_.total_codes, q, g_ + columns_at(view, split),
                       column_max_ + columns_at(view, split)};
    if (kPrior == Prior::kReverseKL) prior_[unit] += here.reverse_kl(p_ + first, begin, end);
    else prior_[unit] += here.cross_entropy(u_ + first, begin, end);
    // Codes that do not exist weigh nothing.
    for (int64_t j = end; j < written; ++j) here.g[j] = here.column_max[j] = 0;
  }

  // What a row's best code contributes is kept aside, to be added in double precision at the end: near the optimum it
  // is nearly all of B and E, and cancels against sigma B and t B down to the small rest that the other codes give. A
  // row whose best code is another rank's has nothing to be kept aside.
  void set_best_aside(int view, int64_t item, int64_t round, int64_t b) {
    const int64_t split = item / plan_.tiles, lane0 = (view * plan_.tiles + item % plan_.tiles) * kLanes;
    const int64_t first_code = (plan_.first_block(split, round) + b) * plan_.block;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const int64_t k = sums_.code[lane0 + lane] - first_code;
      if (k < 0 || k >= plan_.block || rows_.is_padding(lane0 + lane)) continue;
      const int64_t here = b * tile_ + k * kLanes + lane, column = columns_at(view, split) + b * plan_.block + k;
      float& p = p_[at(view, item, group_) + here];
      double share = 1 / (1 + sums_.others[lane0 + lane]);
      if (kPrior == Prior::kCrossEntropy) share = exp2(double(u_[at(view, item, group_) + here]) - column_max_[column]);
      best_prior_weight_[lane0 + lane] = share * g_[column];
      best_partner_u_[lane0 + lane] = u_[at(1 - view, item, group_) + here];
      p = -0.0f;
    }
  }

  void gradients(int64_t item, int64_t round, float* scratch) {
    const int64_t split = item / plan_.tiles;
    for (int64_t b = 0; b < plan_.blocks_in(split, round); ++b) {
      for (int view = 0; view < 2; ++view) set_best_aside(view, item, round, b);
      for (int view = 0; view < 2; ++view) {
        float* const p = p_ + (at(view, item, group_) + b * tile_);
        const int64_t columns = columns_at(view, split) + b * plan_.block;
        GradientWeights<kPrior> weights{p,
                                        u_ + (at(view, item, group_) + b * tile_),
                                        u_ + (at(1 - view, item, group_) + b * tile_),
                                        g_ + columns,
                                        column_max_ + columns,
                                        broadcast(float(request_.beta * kLn2))};
        if (request_.need_grad) {
          const uint32_t* const codes = signs(round, split, b);
          PlainTile plain{p};
          add(dictionary_.add_codes(weights, codes, pull_ + at(view, item, sums_floats_), scratch),
              weight_sum_ + at(view, item, kLanes));
          add(dictionary_.add_codes(plain, codes, expected_ + at(view, item, sums_floats_), p),
              mass_ + at(view, item, kLanes));
        } else {
          dictionary_.only_read(weights);
        }
        add(weights.cross_term.total(), cross_term_ + at(view, item, kLanes));
        if (flushes_ && (round * plan_.group + b + 1) % dictionary_.flush_blocks == 0) {
          flush(expected_ + at(view, item, sums_floats_), flushed_expected_ + at(view, item, sums_floats_));
          flush(pull_ + at(view, item, sums_floats_), flushed_pull_ + at(view, item, sums_floats_));
        }
      }
    }
  }

  static void add(Vec recent, double* total) {
    for (int lane = 0; lane < kLanes; ++lane) total[lane] += recent[lane];
  }

  void flush(float* recent, double* total) const {
    for (int64_t i = 0; i < places_; ++i) total[i] += recent[i], recent[i] = 0;
  }

  // A per-lane double sum over splits.
  double total(const Buffer<double>& sums, int view, int64_t row) const {
    const int64_t tile = row / kLanes, lane = row % kLanes;
    double value = 0;
    for (int64_t s = 0; s < plan_.splits; ++s) value += sums[at(view, s * plan_.tiles + tile, kLanes) + lane];
    return value;
  }

  // One place of an accumulator, what was flushed from it included.
  CPK_INLINE VecDouble sum_over_splits(const Buffer<float>& recent, const Buffer<double>& flushed, int view,
                                      int64_t tile, int64_t i) const {
    VecDouble sum;
    for (int64_t s = 0; s < plan_.splits; ++s) {
      const int64_t from = at(view, s * plan_.tiles + tile, sums_floats_) + i;
      sum = sum + widened(load(recent + from));
      if (flushes_) sum = sum + load_doubles(flushed + from);
    }
    return sum;
  }

  const Blocks& dictionary_;
  const Tiles& rows_;
  const RowSums& sums_;
  const LossRequest& request_;
  const Run& run_;
  const Schedule plan_;
  const int64_t tile_, group_, group_codes_, units_, places_, sums_floats_, scratch_floats_;
  Buffer<float> p_, u_, g_, column_max_;
  Buffer<uint32_t> signs_;
  Buffer<float> scratch_, expected_, pull_;
  const bool flushes_;
  Buffer<double> flushed_expected_, flushed_pull_, mass_, weight_sum_, cross_term_, best_prior_weight_, best_partner_u_;
  Buffer<double> prior_;
  Barrier barrier_;
};

// Runs the pass for the prior that is asked for and calls use(pass).
template <class Blocks, class Use>
static void with_loss_pass(const Blocks& dictionary, const Tiles& rows, const RowSums& sums, const LossRequest& request,
                           const Run& run, const Use& use) {
  if (request.prior == Prior::kReverseKL) {
    LossPass<Blocks, Prior::kReverseKL> pass(dictionary, rows, sums, request, run);
    pass.run();
    use(pass);
  } else {
    LossPass<Blocks, Prior::kCrossEntropy> pass(dictionary, rows, sums, request, run);
    pass.run();
    use(pass);
  }
}

template <class Blocks>
static void cplearn_loss(const Blocks& dictionary, const Batch (&views)[2], const LossRequest& request, const Run& run,
                         LossResult& result) {
  const Tiles rows(dictionary, views, 2, kLog2E / request.temperature, run.threads);
  if (!rows.finite) {
    result.invariance = result.prior = NAN;
    for (int64_t i = 0; request.need_grad && i < views[0].rows * dictionary.num_features; ++i) {
      result.grad[0][i] = result.grad[1][i] = NAN;
    }
    return;
  }
  const RowSums sums(rows);
  row_pass(dictionary, rows, run, sums);
  with_loss_pass(dictionary, rows, sums, request, run, [&](const auto& pass) {
    const int64_t count = 2 * rows.rows;
    const Buffer<double> scalars(kRowScalars * count);
    pass.write_scalars(scalars + 0);
    double cross_term = 0;
    for (int64_t i = 0; i < count; ++i) cross_term += scalars[kCrossTerm * count + i];
    result.invariance = log(double(dictionary.total_codes)) - cross_term / double(count);
    result.prior = pass.prior() / 2;
    if (!request.need_grad) return;
    write_gradients(dictionary, rows, sums, scalars + 0, pass, request.temperature, request.beta, run, result.grad);
  });
}

}  // namespace cplearn::CPK_TARGET
