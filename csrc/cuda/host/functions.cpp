// The public functions as sequences of passes (functions.h). docs/mathematics.md derives them.
#include "functions.h"

#include "problem.h"

namespace cplearn::cuda {

namespace {

// Both passes of the loss, or, where the rows are `known` from all ranges of codes, the second one over a range.
void sum_codes(Problem& problem, const LossSettings& s, bool gradient, const RowSums* known) {
  const Weights weights = s.prior == Prior::kReverseKL ? Weights::kReverseKL : Weights::kCrossEntropy;
  problem.take_columns(weights);
  problem.take_sums(gradient);
  problem.find_best(known);
  problem.for_spans([&](const Span& span) {
    // p̄ and g of the span are complete here, from all rows; with them its share of every sum.
    problem.columns_of(span, weights, s.prior_probs, problem.prior);
    WeightedCodesArguments a{};
    a.weights = weights, a.beta_ln2 = float(s.beta * kLn2), a.slope = problem.slope, a.top = problem.top;
    problem.add_weighted(span, gradient ? WeightedKernel::kGradient : WeightedKernel::kValue, a);
  });
}

double gradient_scale(const Batch& views, double temperature) { return 1 / (2.0 * views.per_view * temperature); }

void mean_columns(Problem& problem, const RowSums* known, float* out) {
  problem.take_columns(Weights::kNone);
  problem.find_best(known);
  problem.for_spans([&](const Span& span) {
    problem.columns_of(span, Weights::kNone, nullptr, nullptr);
    copy_columns(problem.call, problem.slope, span.count, span.count, out + span.first);
  });
}

}  // namespace

void cplearn_loss(Call& call, const Dictionary& d, const Batch& views, const LossSettings& s, float* out, float* grad_1,
                  float* grad_2) {
  const bool gradient = grad_1 != nullptr;
  Problem problem(call, d.codes, d.places, views, kLog2E / s.temperature);
  sum_codes(problem, s, gradient, nullptr);
  problem.finish_rows(s.beta);
  if (gradient) {
    problem.finish_sums(Result::kLossGradient, s.beta, gradient_scale(views, s.temperature), grad_1, grad_2);
  }
  finish_loss(call, problem.cross_term, problem.total, problem.prior, s.beta, d.codes.total_codes, out);
}

void projector_logsumexp(Call& call, const Dictionary& d, const Batch& batch, double temperature, float* out) {
  Problem problem(call, d.codes, d.places, batch, kLog2E / temperature);
  problem.find_best();
  finish_logsumexp(call, problem.state, problem.total, out);
}

void projector_softmax(Call& call, const Dictionary& d, const Batch& batch, double temperature, float* out) {
  Problem problem(call, d.codes, d.places, batch, kLog2E / temperature);
  problem.find_best();
  problem.for_spans([&](const Span& span) {
    problem.passes.probabilities(call, {problem.tile, span, problem.total, problem.state, false, out + span.first,
                                        d.codes.num_codes});
  });
}

void projector_softmax_backward(Call& call, const Dictionary& d, const Batch& batch, const float* upstream,
                                const float* p, double temperature, float* grad) {
  Problem problem(call, d.codes, d.places, batch, kLog2E / temperature);
  problem.take_sums(true);
  double* const centre = call.take<double>(problem.total);
  row_dots(call, p, upstream, problem.total, d.codes.num_codes, centre);
  problem.for_spans([&](const Span& span) { problem.add_given(span, p, upstream, d.codes.num_codes, centre); });
  problem.finish_sums(Result::kGivenWeights, 0, 1 / temperature, grad, nullptr);
}

void expected_code(Call& call, const Dictionary& d, const Batch& batch, double temperature, float* out) {
  Problem problem(call, d.codes, d.places, batch, kLog2E / temperature);
  problem.take_sums(true);
  problem.find_best();
  problem.for_spans([&](const Span& span) {
    WeightedCodesArguments a{};
    a.weights = Weights::kNone;
    problem.add_weighted(span, WeightedKernel::kRow, a);
  });
  problem.finish_rows(0);
  problem.finish_sums(Result::kExpectedCode, 0, 1, out, nullptr);
}

// The weights are taken less that of the row's best code: the result is the same, and near the optimum, where that code
// holds nearly all of p, nothing large has to cancel.
void expected_code_backward(Call& call, const Dictionary& d, const Batch& batch, const float* upstream,
                            double temperature, float* grad) {
  Problem problem(call, d.codes, d.places, batch, kLog2E / temperature);
  Batch second = batch;
  second.views[0] = {upstream, Dtype::kFloat32, batch.num_features, 1};
  problem.add_second(second);
  problem.take_sums(true);
  float* const centre = call.take<float>(problem.total);
  problem.find_best();
  products_at_best(call, second, d.codes, problem.state.code, centre);
  problem.for_spans([&](const Span& span) {
    WeightedCodesArguments a{};
    a.weights = Weights::kProducts, a.centre = centre;
    problem.add_weighted(span, WeightedKernel::kRow, a);
  });
  problem.finish_rows(0);
  problem.finish_sums(Result::kGradient, 0, 1 / temperature, grad, nullptr);
}

void mean_assignment(Call& call, const Dictionary& d, const Batch& batch, double temperature, float* out) {
  Problem problem(call, d.codes, d.places, batch, kLog2E / temperature);
  mean_columns(problem, nullptr, out);
}

void mean_assignment_backward(Call& call, const Dictionary& d, const Batch& batch, const float* upstream,
                              double temperature, float* grad) {
  Problem problem(call, d.codes, d.places, batch, kLog2E / temperature);
  problem.take_sums(true);
  float* const centre = call.take<float>(problem.total);
  float* const per_code = call.take<float>(problem.columns());
  problem.find_best();
  gather_at_best(call, upstream, problem.state.code, problem.total, centre);
  problem.for_spans([&](const Span& span) {
    copy_columns(call, upstream + span.first, span.count, problem.columns(), per_code);
    WeightedCodesArguments a{};
    a.weights = Weights::kPerCode, a.centre = centre, a.slope = per_code;
    problem.add_weighted(span, WeightedKernel::kRow, a);
  });
  problem.finish_rows(0);
  problem.finish_sums(Result::kGradient, 0, 1 / (double(batch.per_view) * temperature), grad, nullptr);
}

void best_codes(Call& call, const Dictionary& d, const Batch& batch, float* scores, int64_t* codes) {
  Problem problem(call, d.codes, d.places, batch, 1.0);
  problem.find_best();
  finish_scores(call, problem.state, problem.total, scores, codes);
}

void scores(Call& call, const Dictionary& d, const Batch& batch, int64_t first, int64_t count, float* out) {
  Problem problem(call, d.codes, d.places, batch, 1.0);
  problem.for_spans(
      [&](const Span& span) {
        problem.passes.probabilities(call, {problem.tile, span, problem.total, problem.state, true,
                                            out + (span.first - first), count});
      },
      first, first + count);
}

void row_sums(Call& call, const Dictionary& d, const Batch& view, double temperature, const RowSums& out) {
  Problem problem(call, d.codes, d.places, view, kLog2E / temperature);
  problem.find_best();
  write_row_sums(call, problem.state, problem.total, out);
}

void mean_assignment_of_range(Call& call, const Dictionary& d, const Batch& batch, double temperature,
                              const RowSums& known, float* out) {
  Problem problem(call, d.codes, d.places, batch, kLog2E / temperature);
  mean_columns(problem, &known, out);
}

void code_sums(Call& call, const Dictionary& d, const Batch& views, const LossSettings& s, const RowSums& known,
               const RowScalars& scalars, double* prior, double* sums) {
  Problem problem(call, d.codes, d.places, views, kLog2E / s.temperature);
  sum_codes(problem, s, sums != nullptr, &known);
  problem.finish_range(s.beta, scalars, prior, sums);
}

void gradients(Call& call, const Dictionary& d, const Batch& views, double temperature, double beta,
               const RowSums& known, const RowScalars& scalars, const double* sums, float* grad) {
  const int32_t total = Batch::rows_of(views);
  const int64_t width = d.codes.num_features;
  BestShare* const shares = call.take<BestShare>(total);
  share_rows(call, known.others, scalars, total, beta, shares);
  finish_sums(call, {sums, 1, width, nullptr, shares, known.code, d.codes, total, views.per_view, beta,
                     gradient_scale(views, temperature), {grad, grad + views.per_view * width}},
              Result::kLossGradient);
}

}  // namespace cplearn::cuda
