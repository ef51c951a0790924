// The functions of one batch whose results are small: projector_logsumexp, mean_assignment, expected_code, and the
// backward passes of the last two (formulas in backends/chunked/functions.py and docs/mathematics.md).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../../formulas.h"
#include "../codes/walsh_hadamard.h"
#include "../kernels.h"
#include "../layout.h"
#include "../vector.h"
#include "../workers.h"
#include "pass.h"

namespace cplearn::CPK_TARGET {

template <class Blocks>
static void projector_logsumexp(const Blocks& dictionary, const Batch& batch, double temperature, const Run& run,
                                float* out) {
  const SummedRows found(dictionary, batch, temperature, run);
  const RowSums& sums = found.sums;
  for (int64_t i = 0; i < batch.rows; ++i) out[i] = float(kLn2 * double(sums.best[i]) + log1p(sums.others[i]));
}

// Sink of walsh_hadamard: probabilities of one tile, stored or added to a column.
template <bool kAdd>
struct Probabilities {
  Vec best, inverse_sum;
  float* p;
  int64_t limit;  // codes of this block that exist; the others get 0

  Probabilities(const RowSums& sums, int64_t tile, float* p_, int64_t limit_)
      : best(load(sums.best + tile * kLanes)),
        inverse_sum(load(sums.inverse_sum + tile * kLanes)),
        p(p_),
        limit(limit_) {}

  template <int R>
  CPK_INLINE void operator()(int64_t r, Vec (&x)[R]) {
#pragma GCC unroll 16
    for (int q = 0; q < R; ++q) {
      float* to = p + (r + q) * kLanes;
      const Vec value = r + q < limit ? exp2_nonpositive(x[q] - best) * inverse_sum : broadcast(0.0f);
      store(to, kAdd ? load(to) + value : value);
    }
  }
};

// p̄ of every code, given what is known of the rows.
template <class Blocks>
static void means_of_codes(const Blocks& dictionary, const Tiles& rows, const RowSums& sums, const Run& run,
                           float* out) {
  const Schedule plan(dictionary, rows.count);
  const int64_t block_floats = plan.block * kLanes;
  Buffer<float> column(block_floats * run.threads), scratch(block_floats * run.threads);
  Buffer<uint32_t> all_signs(dictionary.signs * run.threads);
  Interruption interruption(run);
  // Every code belongs to one worker, which sees all rows of it.
  in_parallel(run.threads, [&](int64_t worker, int64_t workers) {
    float* my_column = column + worker * block_floats;
    uint32_t* signs = all_signs + worker * dictionary.signs;
    const Share mine(plan.blocks, worker, workers);
    for (int64_t b = mine.begin; b < mine.end && !interruption.before(worker, b - mine.begin); ++b) {
      dictionary.prepare(b, signs, false);
      memset(my_column, 0, sizeof(float) * size_t(block_floats));
      for (int64_t t = 0; t < rows.count; ++t) {
        Probabilities<true> sink(sums, t, my_column, plan.codes_in(b));
        dictionary.logits(rows.tile(t), signs, sink, scratch + worker * block_floats);
      }
      for (int64_t j = 0; j < plan.codes_in(b); ++j) {
        out[b * plan.block + j] = sum_lanes(load(my_column + j * kLanes)) / float(rows.rows);
      }
    }
  });
  interruption.throw_if_interrupted();
}

template <class Blocks>
static void mean_assignment(const Blocks& dictionary, const Batch& batch, double temperature, const Run& run,
                            float* out) {
  const SummedRows found(dictionary, batch, temperature, run);
  means_of_codes(dictionary, found.rows, found.sums, run, out);
}

// Adds `sum_j source(j) w_j` over the codes of a block to `into`, by way of float32 sums of this block alone; returns
// `sum_j source(j)`.
template <class Blocks, class Source>
CPK_INLINE Vec add_block(const Blocks& dictionary, Source& source, const uint32_t* signs, float* recent, float* scratch,
                     double* into) {
  const int64_t places = dictionary.places * kLanes;
  memset(recent, 0, sizeof(float) * size_t(places));
  const Vec sum = dictionary.add_codes(source, signs, recent, scratch);
  for (int64_t i = 0; i < places; ++i) into[i] += recent[i];
  return sum;
}

// What the sums of codes below are weighted with besides p: nothing.
struct NoWeights {
  static constexpr bool kAny = false;
};

// A number v_j per code.
struct WeightPerCode {
  static constexpr bool kAny = true;
  const float* weights;
  template <class Blocks>
  void prepare(const Blocks&, int64_t, const uint32_t*, float*) const {}
  double of_code(int64_t, int64_t code) const { return weights[code]; }
  CPK_INLINE Vec operator()(const float*, int64_t first_code, int64_t k) const {
    return broadcast(weights[first_code + k]);
  }
};

// v_ij = y_i · w_j for rows y: the products go to an array of the block's size.
struct WeightPerEntry {
  static constexpr bool kAny = true;
  const Tiles& rows;
  const Buffer<float>& best_code_products;
  template <class Blocks>
  void prepare(const Blocks& dictionary, int64_t tile, const uint32_t* signs, float* products) const {
    StoreValues sink{products};
    dictionary.logits(rows.tile(tile), signs, sink, products);
  }
  double of_code(int64_t row, int64_t) const { return best_code_products[row]; }
  CPK_INLINE Vec operator()(const float* products, int64_t, int64_t k) const { return load(products + k * kLanes); }

  struct StoreValues {
    float* values;
    template <int R>
    CPK_INLINE void operator()(int64_t r, Vec (&x)[R]) {
#pragma GCC unroll 16
      for (int q = 0; q < R; ++q) store(values + (r + q) * kLanes, x[q]);
    }
  };
};

// Source of walsh_hadamard: p_ij (v_ij - v of the row's best code).
template <class Weights>
struct CentredWeights {
  const float* p;
  const Weights& weights;
  const float* products;
  int64_t first_code, limit;
  Vec centre;
  CPK_INLINE Vec operator()(int64_t k) {
    if (k >= limit) return broadcast(0.0f);
    return load(p + k * kLanes) * (weights(products, first_code, k) - centre);
  }
  CPK_INLINE void group_done(int64_t) const {}
};

// Without weights `out_i = sum_j p_ij w_j`, the expected code B_i. With weights `out_i = scale * [sum_j p_ij v'_ij w_j
// - (sum_j p_ij v'_ij) B_i]`, where v' is v less its value at the row's best code: the result is the same, and near the
// optimum, where that code holds nearly all of p, nothing large has to cancel.
template <class Blocks, class Weights>
static void sum_codes(const Blocks& dictionary, const SummedRows& found, const Weights& weights, double scale,
                      const Run& run, float* out) {
  const Tiles& rows = found.rows;
  const RowSums& sums = found.sums;
  const Schedule plan(dictionary, rows.count);
  const int64_t block_floats = plan.block * kLanes, places = dictionary.places * kLanes;
  const int64_t scratch_floats = larger(block_floats, places), all = plan.items() * places;
  constexpr bool kWeighted = Weights::kAny;
  Buffer<float> p(block_floats * run.threads), scratch(scratch_floats * run.threads);
  Buffer<float> products(kWeighted ? block_floats * run.threads : 0);
  Buffer<float> recent(places * run.threads);  // float32 sums of one block, on their way into double precision
  Buffer<double> total(all), weighted(kWeighted ? all : 0), weight(plan.items() * kLanes);
  Buffer<float> centre(rows.count * kLanes);
  total.fill(0.0), weighted.fill(0.0), weight.fill(0.0), centre.fill(0.0f);
  if constexpr (kWeighted) {
    for (int64_t row = 0; row < rows.rows; ++row) centre[row] = float(weights.of_code(row, sums.code[row]));
  }

  visit_items(dictionary, plan, run, true,
              [&](int64_t worker, int64_t item, int64_t t, int64_t b, const uint32_t* signs) {
    float* my_p = p + worker * block_floats;
    float* my_recent = recent + worker * places;
    float* my_scratch = scratch + worker * scratch_floats;
    Probabilities<false> sink(sums, t, my_p, plan.codes_in(b));
    dictionary.logits(rows.tile(t), signs, sink, my_scratch);
    PlainTile plain{my_p};
    add_block(dictionary, plain, signs, my_recent, my_scratch, total + item * places);
    if constexpr (kWeighted) {
      float* my_products = products + worker * block_floats;
      weights.prepare(dictionary, t, signs, my_products);
      CentredWeights<Weights> source{my_p, weights, my_products, b * plan.block, plan.codes_in(b),
                                     load(centre + t * kLanes)};
      const Vec sum = add_block(dictionary, source, signs, my_recent, my_scratch, weighted + item * places);
      for (int lane = 0; lane < kLanes; ++lane) weight[item * kLanes + lane] += sum[lane];
    }
  });

  in_parallel(run.threads, [&](int64_t worker, int64_t workers) {
    float* result = scratch + worker * scratch_floats;
    const Share mine(plan.tiles, worker, workers);
    for (int64_t t = mine.begin; t < mine.end; ++t) {
      double mean_weight[kLanes] = {};
      for (int64_t s = 0; s < plan.splits; ++s) {
        for (int lane = 0; lane < kLanes; ++lane) mean_weight[lane] += weight[(s * plan.tiles + t) * kLanes + lane];
      }
      for (int64_t i = 0; i < places; ++i) {
        double expected = 0, pull = 0;
        for (int64_t s = 0; s < plan.splits; ++s) {
          const int64_t from = (s * plan.tiles + t) * places + i;
          expected += total[from];
          if (kWeighted) pull += weighted[from];
        }
        result[i] = float(kWeighted ? scale * (pull - mean_weight[i % kLanes] * expected) : expected);
      }
      store_rows(dictionary, result, t * kLanes, rows.rows, out);
    }
  });
}

template <class Blocks>
static void expected_code(const Blocks& dictionary, const Batch& batch, double temperature, const Run& run,
                          float* out) {
  const SummedRows found(dictionary, batch, temperature, run);
  sum_codes(dictionary, found, NoWeights(), 1.0, run, out);
}

template <class Blocks>
static void mean_assignment_backward(const Blocks& dictionary, const Batch& batch, const float* upstream,
                                     double temperature, const Run& run, float* grad) {
  const SummedRows found(dictionary, batch, temperature, run);
  sum_codes(dictionary, found, WeightPerCode{upstream}, 1 / (double(batch.rows) * temperature), run, grad);
}

template <class Blocks>
static void expected_code_backward(const Blocks& dictionary, const Batch& batch, const float* upstream,
                                   double temperature, const Run& run, float* grad) {
  const SummedRows found(dictionary, batch, temperature, run);
  const Batch upstream_batch{upstream, batch.rows};
  const Tiles upstream_rows(dictionary, &upstream_batch, 1, 1.0, run.threads);
  Buffer<float> best_code_products(found.rows.count * kLanes), code(dictionary.places * kLanes);
  for (int64_t t = 0; t < found.rows.count; ++t) {
    dictionary.write_codes(found.sums.code + t * kLanes, code + 0);
    VecDouble product;
    for (int64_t i = 0; i < dictionary.places * kLanes; i += kLanes) {
      product = product + widened(load(upstream_rows.tile(t) + i) * load(code + i));
    }
    store(best_code_products + t * kLanes, narrowed(product));
  }
  const WeightPerEntry weights{upstream_rows, best_code_products};
  sum_codes(dictionary, found, weights, 1 / temperature, run, grad);
}

}  // namespace cplearn::CPK_TARGET
