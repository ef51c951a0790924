// projector_softmax and its backward pass: the only functions that read or write arrays of n x c.
#pragma once

#include <cstdint>
#include <cstring>

#include "../../formulas.h"
#include "../codes/walsh_hadamard.h"
#include "../kernels.h"
#include "../layout.h"
#include "../vector.h"
#include "../workers.h"
#include "functions.h"
#include "pass.h"

namespace cplearn::CPK_TARGET {

template <class Blocks>
static void projector_softmax(const Blocks& dictionary, const Batch& batch, double temperature, const Run& run,
                              float* out) {
  const SummedRows found(dictionary, batch, temperature, run);
  const Tiles& rows = found.rows;
  const Schedule plan(dictionary, rows.count);
  const int64_t block_floats = plan.block * kLanes;
  Buffer<float> p(block_floats * run.threads), scratch(block_floats * run.threads);
  visit_items(dictionary, plan, run, false,
              [&](int64_t worker, int64_t, int64_t t, int64_t b, const uint32_t* signs) {
    float* my_p = p + worker * block_floats;
    Probabilities<false> sink(found.sums, t, my_p, plan.codes_in(b));
    dictionary.logits(rows.tile(t), signs, sink, scratch + worker * block_floats);
    const int64_t first_row = t * kLanes, lanes = smaller(kLanes, batch.rows - first_row), count = plan.codes_in(b);
    for (int64_t lane = 0; lane < lanes; ++lane) {
      float* to = out + (first_row + lane) * plan.num_codes + b * plan.block;
      for (int64_t j = 0; j < count; ++j) to[j] = my_p[j * kLanes + lane];
    }
  });
}

// `1/temperature * sum_j p_ij (v_ij - sum_k p_ik v_ik) w_j`; the difference in double precision, since near the optimum
// v of the best code and the mean of v agree in their leading digits.
template <class Blocks>
static void projector_softmax_backward(const Blocks& dictionary, int64_t num_rows, const float* upstream,
                                       const float* p, double temperature, const Run& run, float* grad) {
  const int64_t tiles = ceil_div(num_rows, kLanes), num_codes = dictionary.num_codes;
  const Schedule plan(dictionary, tiles);
  const int64_t block_floats = plan.block * kLanes, places = dictionary.places * kLanes;
  const int64_t scratch_floats = larger(block_floats, places);
  Buffer<double> centre(tiles * kLanes), total(plan.items() * places);
  Buffer<float> weights(block_floats * run.threads), recent(places * run.threads);
  Buffer<float> scratch(scratch_floats * run.threads);
  total.fill(0.0);
  in_parallel(run.threads, [&](int64_t worker, int64_t workers) {
    const Share mine(num_rows, worker, workers);
    for (int64_t row = mine.begin; row < mine.end; ++row) {
      const float *pi = p + row * num_codes, *vi = upstream + row * num_codes;
      double parts[8] = {};  // independent sums, for the compiler's vectors
      int64_t j = 0;
      for (; j + 8 <= num_codes; j += 8) {
        for (int i = 0; i < 8; ++i) parts[i] += double(pi[j + i]) * vi[j + i];
      }
      for (; j < num_codes; ++j) parts[0] += double(pi[j]) * vi[j];
      centre[row] = ((parts[0] + parts[1]) + (parts[2] + parts[3])) + ((parts[4] + parts[5]) + (parts[6] + parts[7]));
    }
  });
  visit_items(dictionary, plan, run, true,
              [&](int64_t worker, int64_t item, int64_t t, int64_t b, const uint32_t* signs) {
    float* mine = weights + worker * block_floats;
    const int64_t first_row = t * kLanes, lanes = smaller(kLanes, num_rows - first_row), count = plan.codes_in(b);
    if (lanes < kLanes || count < plan.block) memset(mine, 0, sizeof(float) * size_t(block_floats));
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const int64_t from = (first_row + lane) * num_codes + b * plan.block;
      for (int64_t j = 0; j < count; ++j) {
        mine[j * kLanes + lane] = float(p[from + j] * (upstream[from + j] - centre[first_row + lane]));
      }
    }
    PlainTile plain{mine};
    add_block(dictionary, plain, signs, recent + worker * places, scratch + worker * scratch_floats,
              total + item * places);
  });
  in_parallel(run.threads, [&](int64_t worker, int64_t workers) {
    float* result = scratch + worker * scratch_floats;
    const Share mine(tiles, worker, workers);
    for (int64_t t = mine.begin; t < mine.end; ++t) {
      for (int64_t i = 0; i < places; ++i) {
        double sum = 0;
        for (int64_t s = 0; s < plan.splits; ++s) sum += total[(s * tiles + t) * places + i];
        result[i] = float(sum / temperature);
      }
      store_rows(dictionary, result, t * kLanes, num_rows, grad);
    }
  });
}

}  // namespace cplearn::CPK_TARGET
