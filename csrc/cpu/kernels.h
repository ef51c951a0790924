// The plain interface of the CPU kernels: pointers and sizes in, a table of functions per instruction set out.
#pragma once

#include <cstdint>

#include "../codes.h"

namespace cplearn {

// Embeddings: `rows` contiguous rows of codes.num_features floats.
struct Batch {
  const float* data;
  int64_t rows;
};

// How to run: `threads` changes the time and nothing else, not even the last bit. `interrupted` (may be null) is called
// a few times a second from the calling thread; once it returns true the function throws Interrupted.
struct Run {
  int threads;
  bool (*interrupted)();
};

struct Interrupted {};

struct LossRequest {
  double temperature;
  double beta;
  Prior prior;
  const float* prior_probs;  // (num_codes), or null for the uniform prior
  bool need_grad;
};

struct LossResult {
  double invariance;
  double prior;
  float* grad[2];  // (rows, num_features) each; unused unless need_grad
};

// What one range of codes, or a group of ranks that share out all codes, knows of rows; view 1's follow view 0's where
// there are two. `best` is the largest logit (a float, in powers of two), `others` the sum of 2^(logit - best) over the
// other codes. The code of a group's best is kElsewhere where it is in another range.
struct RowBests {
  double* best;
  double* others;
  int64_t* code;
};

struct ShardSums {
  double* scalars;   // (RowScalar, 2 rows): of the range as shard_sums writes it, of the group for shard_gradients
  double* expected;  // B and E of the range without best codes, in the kernels' own layout; unused unless need_grad
  double* pull;
  double prior;      // the prior's terms of both views
};

// What one instruction set provides. Every function computes the formula of the function of the same name in
// reference.py, for finite inputs; those named `…_backward` its gradient, given the gradient `upstream` of its result.
// cplearn_loss gives NaN throughout when an input is not finite; the others promise nothing for a row that is not.
struct Kernels {
  const char* name;
  int lanes;
  void (*cplearn_loss)(const Codes&, const Batch (&views)[2], const LossRequest&, const Run&, LossResult&);
  // out: (rows)
  void (*projector_logsumexp)(const Codes&, const Batch&, double temperature, const Run&, float* out);
  // out: (rows, num_codes)
  void (*projector_softmax)(const Codes&, const Batch&, double temperature, const Run&, float* out);
  // upstream, p: (rows, num_codes); grad: (rows, num_features)
  void (*projector_softmax_backward)(const Codes&, int64_t rows, const float* upstream, const float* p,
                                     double temperature, const Run&, float* grad);
  // out: (rows, num_features)
  void (*expected_code)(const Codes&, const Batch&, double temperature, const Run&, float* out);
  // upstream, grad: (rows, num_features)
  void (*expected_code_backward)(const Codes&, const Batch&, const float* upstream, double temperature, const Run&,
                                 float* grad);
  // out: (num_codes)
  void (*mean_assignment)(const Codes&, const Batch&, double temperature, const Run&, float* out);
  // upstream: (num_codes); grad: (rows, num_features)
  void (*mean_assignment_backward)(const Codes&, const Batch&, const float* upstream, double temperature, const Run&,
                                   float* grad);
  // scores, found: (rows, top_k)
  void (*assign)(const Codes&, const Batch&, int64_t top_k, const Run&, float* scores, int64_t* found);
  // How many doubles ShardSums::expected and pull take each.
  void (*shard_size)(const Codes&, int64_t rows, int64_t& doubles);
  // The steps of a rank; `bests` are the group's. When an input is not finite row_sums gives NaN for its row,
  // shard_sums NaN throughout.
  void (*row_sums)(const Codes&, const Batch&, double temperature, const Run&, RowBests& out);
  // out: (num_codes)
  void (*shard_mean_assignment)(const Codes&, const Batch&, const RowBests& bests, double temperature, const Run&,
                                float* out);
  void (*shard_sums)(const Codes&, const Batch (&views)[2], const RowBests& bests, const LossRequest&, const Run&,
                     ShardSums& out);
  // grad: (2 rows, num_features), the range's share
  void (*shard_gradients)(const Codes&, int64_t rows, const RowBests& bests, double temperature, double beta,
                          const ShardSums& sums, const Run&, float* grad);
};

}  // namespace cplearn
