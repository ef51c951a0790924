// The public functions on a GPU, each in terms of the passes. All addresses are of the device; nothing is waited for.
//
// With a Call that has no memory they only count the bytes they need. They compute the function of the same name of
// reference.py; those named `…_backward` its gradient for a given gradient `upstream` of its result, contiguous float32.
// A row that holds a NaN or an infinity gets results of NaN.
#pragma once

#include "rows.h"

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

}  // namespace cplearn::cuda
