// The public functions on a GPU, each in terms of the passes. All addresses are of the device; nothing is waited for.
//
// With a Call that has no memory they only count the bytes they need. They compute the function of the same name of
// reference.py; those named `…_backward` its gradient for a given gradient `upstream` of its result, contiguous
// float32. A row that holds a NaN or an infinity gets results of NaN.
#pragma once

#include "../rows.h"

namespace cplearn::cuda {

struct Dictionary {
  Codes codes;
  Places places;
};

struct LossSettings {
  double temperature, beta;
  Prior prior;
  const float* prior_probs;  // (num_codes), or null for the uniform prior
};

// out: loss, invariance, prior; grads (n, f) each, or null when no gradient is wanted.
void cplearn_loss(Call&, const Dictionary&, const Batch& views, const LossSettings&, float* out, float* grad_1,
                  float* grad_2);
void projector_logsumexp(Call&, const Dictionary&, const Batch&, double temperature, float* out);
void projector_softmax(Call&, const Dictionary&, const Batch&, double temperature, float* out);
void projector_softmax_backward(Call&, const Dictionary&, const Batch&, const float* upstream, const float* p,
                                double temperature, float* grad);
void expected_code(Call&, const Dictionary&, const Batch&, double temperature, float* out);
void expected_code_backward(Call&, const Dictionary&, const Batch&, const float* upstream, double temperature,
                            float* grad);
void mean_assignment(Call&, const Dictionary&, const Batch&, double temperature, float* out);
void mean_assignment_backward(Call&, const Dictionary&, const Batch&, const float* upstream, double temperature,
                              float* grad);
// The best code of each row and its product with it.
void best_codes(Call&, const Dictionary&, const Batch&, float* scores, int64_t* codes);
// The products with codes first … first + count - 1, (n, count); `first` a multiple of 8192.
void scores(Call&, const Dictionary&, const Batch&, int64_t first, int64_t count, float* out);

// ---- the loss in steps, of a range of codes (cplearn_kernels/backends/cuda/shard.py) ----
//
// `known` are the rows of all views as all ranges together know them, its `code` kElsewhere where another range has a
// row's best code; what the steps leave is to be added up over the ranges.

// Pass 1 of one view.
void row_sums(Call&, const Dictionary&, const Batch& view, double temperature, const RowSums& out);
void mean_assignment_of_range(Call&, const Dictionary&, const Batch&, double temperature, const RowSums& known,
                              float* out);
// Pass 2 of two views. `sums`: (2, rows of both views, f), or null when no gradient is wanted.
void code_sums(Call&, const Dictionary&, const Batch& views, const LossSettings&, const RowSums& known,
               const RowScalars& scalars, double* prior, double* sums);
// The range's share of the gradient, (rows of both views, f), from its `sums` and the scalars of all ranges.
void gradients(Call&, const Dictionary&, const Batch& views, double temperature, double beta, const RowSums& known,
               const RowScalars& scalars, const double* sums, float* grad);

}  // namespace cplearn::cuda
