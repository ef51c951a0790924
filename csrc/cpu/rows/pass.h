// Pass 1: each row's best code, its logit m, and the sum of exp(s - m) over all other codes
// (reference.projector_logsumexp).
//
// The best code is left out of the sum because near the optimum it holds nearly all of the mass: 1 - p and log p of the
// best code are then as accurate as the small numbers that they are, which `1 + tiny` in float32 would not be.
#pragma once

#include <cmath>
#include <cstdint>

#include "../../formulas.h"
#include "../kernels.h"
#include "../layout.h"
#include "../vector.h"
#include "../workers.h"

namespace cplearn::CPK_TARGET {

// Sink of walsh_hadamard: running best and sum of 2^(s - best) over the other codes, per lane. The best moves rarely.
struct OnlineMaxSum {
  Vec best;
  LeveledSum others;
  int64_t* code;  // of the best, per lane
  int64_t first_code, limit;  // codes of this block that exist

  template <int R>
  CPK_INLINE void operator()(int64_t r, Vec (&x)[R]) {
    if (__builtin_expect(r + R > limit, 0)) {
#pragma GCC unroll 16
      for (int q = 0; q < R; ++q) x[q] = r + q < limit ? x[q] : broadcast(kNoLogit);
    }
    Vec largest = x[0];
#pragma GCC unroll 16
    for (int q = 1; q < R; ++q) largest = vmax(largest, x[q]);
    if (__builtin_expect(any_greater(largest, best), 0)) return move_best<R>(r, x, vmax(largest, best));
    Vec total = exp2_nonpositive(x[0] - best);
#pragma GCC unroll 16
    for (int q = 1; q < R; ++q) total = total + exp2_nonpositive(x[q] - best);
    others.add(total);
    others.group_done(r / R);
  }

 private:
  // In lanes that find a better code, the old best joins the others and the first of the new best is left out.
  template <int R>
  CPK_INLINE void move_best(int64_t r, Vec (&x)[R], Vec raised) {
    VecInt pending = raised > best;
    const Vec so_far = others.total();
    others = LeveledSum();
    others.all = pending ? (so_far + broadcast(1.0f)) * exp2_nonpositive(best - raised) : so_far;
    best = raised;
    Vec total = broadcast(0.0f);
#pragma GCC unroll 1
    for (int q = 0; q < R; ++q) {
      const VecInt found = pending & (x[q] == best);
      total = total + (found ? broadcast(0.0f) : exp2_nonpositive(x[q] - best));
      if (!any_lane(found)) continue;
      pending = pending & ~found;
      for (int lane = 0; lane < kLanes; ++lane) {
        if (found[lane]) code[lane] = first_code + r + q;
      }
    }
    others.add(total);
  }
};

// What pass 1 leaves for every lane of every tile, in log2 units: the best logit, its code, the sum over the others
// (its mass is 1), 1 / sum and log2(sum / c) over all. Lanes that only pad a tile get inverse_sum = 0 and a huge
// log2_mean: their probabilities are 0 and no column maximum is theirs.
struct RowSums {
  Buffer<float> best, inverse_sum, log2_mean;
  Buffer<int64_t> code;
  Buffer<double> others;
  explicit RowSums(const Tiling& tiling) : RowSums(tiling.count * kLanes) {}

  void set(int64_t i, float best_, double others_, int64_t code_, bool padding, int64_t total_codes) const {
    best[i] = best_, others[i] = others_, code[i] = code_;
    inverse_sum[i] = padding ? 0.0f : float(1 / (1 + others_));
    log2_mean[i] = padding ? 1e37f : float((log1p(others_) - log(double(total_codes))) * kLog2E);
  }

 private:
  explicit RowSums(int64_t lanes) : best(lanes), inverse_sum(lanes), log2_mean(lanes), code(lanes), others(lanes) {}
};

// Calls visit(worker, item, tile, block, signs) for every block of every item, each item by one thread in ascending
// order of blocks. For everything that needs no other row. `both` is passed on to Blocks::prepare.
template <class Blocks, class Visit>
static void visit_items(const Blocks& dictionary, const Schedule& plan, const Run& run, bool both, Visit visit) {
  Buffer<uint32_t> all_signs(plan.group * dictionary.signs * run.threads);
  Interruption interruption(run);
  in_parallel(run.threads, [&](int64_t worker, int64_t workers) {
    const Share mine(plan.items(), worker, workers);
    uint32_t* const signs = all_signs + worker * plan.group * dictionary.signs;
    for (int64_t round = 0; round < plan.rounds && !interruption.before(worker, round); ++round) {
      for (int64_t item = mine.begin; item < mine.end; ++item) {
        const int64_t split = item / plan.tiles, tile = item % plan.tiles;
        const int64_t first = plan.first_block(split, round), count = plan.blocks_in(split, round);
        if (item == mine.begin || tile == 0) {
          for (int64_t g = 0; g < count; ++g) dictionary.prepare(first + g, signs + g * dictionary.signs, both);
        }
        for (int64_t g = 0; g < count; ++g) visit(worker, item, tile, first + g, signs + g * dictionary.signs);
      }
    }
  });
  interruption.throw_if_interrupted();
}

template <class Blocks>
static void row_pass(const Blocks& dictionary, const Tiles& rows, const Run& run, const RowSums& result) {
  const Schedule plan(dictionary, rows.count);
  const int64_t lanes = rows.count * kLanes, scratch_floats = padded(larger(plan.block, dictionary.places) * kLanes);
  Buffer<float> best(plan.splits * lanes), scratch(scratch_floats * run.threads);
  Buffer<int64_t> code(plan.splits * lanes);
  Buffer<double> others(plan.splits * lanes);
  best.fill(kNoLogit), code.fill(0), others.fill(0.0);

  visit_items(dictionary, plan, run, false,
              [&](int64_t worker, int64_t item, int64_t tile, int64_t b, const uint32_t* signs) {
    const int64_t lane0 = item * kLanes;
    const Vec before = load(best + lane0);
    OnlineMaxSum state{before, LeveledSum(), code + lane0, b * plan.block, plan.codes_in(b)};
    dictionary.logits(rows.tile(tile), signs, state, scratch + worker * scratch_floats);
    const Vec kept = exp2_nonpositive(before - state.best);
    const Vec sum = state.others.total();
    store(best + lane0, state.best);
    for (int lane = 0; lane < kLanes; ++lane) {
      others[lane0 + lane] = others[lane0 + lane] * kept[lane] + sum[lane];
    }
  });

  for (int64_t i = 0; i < lanes; ++i) {
    int64_t winner = i;
    for (int64_t s = i + lanes; s < plan.splits * lanes; s += lanes) winner = best[s] > best[winner] ? s : winner;
    double sum = others[winner];
    for (int64_t s = i; s < plan.splits * lanes; s += lanes) {
      if (s != winner) sum += (1 + others[s]) * exp2(double(best[s]) - best[winner]);
    }
    result.set(i, best[winner], sum, code[winner], rows.is_padding(i), dictionary.total_codes);
  }
}

// The rows of one batch, and what pass 1 finds of them.
struct SummedRows {
  const Tiles rows;
  const RowSums sums;

  template <class Blocks>
  SummedRows(const Blocks& dictionary, const Batch& batch, double temperature, const Run& run)
      : rows(dictionary, &batch, 1, kLog2E / temperature, run.threads), sums(rows) {
    row_pass(dictionary, rows, run, sums);
  }
};

}  // namespace cplearn::CPK_TARGET
