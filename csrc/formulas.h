// The formulas of docs/mathematics.md that the compiled backends share. Value types are template parameters: a float or
// a double on a GPU, a vector of rows on the CPU.
//
// Logits are in powers of two. With d the logit less the row's best, p = 2^d / sum and u = log2(c p).
#pragma once

#include <cmath>

#include "codes.h"

namespace cplearn {

constexpr float kNoLogit = -3e38f;  // of codes that do not exist

// The best code of a row for which it is in another range: no code has this number.
constexpr int32_t kElsewhere = -1;

// What is known of a row from some of its codes: the largest logit, its code (the lowest of equals), and the sum of
// 2^(logit - best) over the other codes. The best code stays out of the sum because near the optimum it holds nearly
// all of it: the rest keeps its digits.
struct BestCode {
  float best;
  int32_t code;
  double others;
};

CPK_SHARED_FUNCTION BestCode merged(BestCode a, BestCode b) {
  const bool b_leads = b.best > a.best || (b.best == a.best && b.code < a.code);
  const BestCode &first = b_leads ? b : a, &second = b_leads ? a : b;
  return {first.best, first.code, first.others + (1 + second.others) * exp2(double(second.best) - double(first.best))};
}

// Sums over some codes that the loss and the gradients of a row need; added up over ranges, those over all codes.
// "Others" are all codes but the best. The cross term is `sum_j p_ij log(c p'_ij)`, p' the partner's p; at the best
// code stand the prior's part of its weight and the partner's u, both zero where it is in another range.
enum RowScalar : int { kCrossTerm, kMassOfOthers, kWeightsOfOthers, kBestPriorWeight, kBestPartnerU, kRowScalars };

// The weight that the gradient sums a code with: `p g - beta p u'`, u' the partner row's u; `prior_weight` is p g, or
// under cross entropy what `cross_entropy_weight` gives, and beta in u's unit.
template <class Value>
CPK_SHARED_FUNCTION Value pull_weight(Value prior_weight, Value beta_ln2, Value p_times_partner_u) {
  return prior_weight - beta_ln2 * p_times_partner_u;
}

// g_j under cross entropy, scaled so that `2^(u_ij - top_j) g_j = -q_j exp(log p_ij - log p̄_j)`: 1 / p̄_j would
// overflow on aligned codes. `sum` is that of 2^(u_ij - top_j) over the rows.
CPK_SHARED_FUNCTION double cross_entropy_slope(double q, double rows, double sum) { return -q * rows / sum; }

// `-q_j log p̄_j`.
CPK_SHARED_FUNCTION double cross_entropy_term(double q, double rows, double num_codes, double top, double sum) {
  return -q * (kLn2 * (top + log2(sum)) - log(rows) - log(num_codes));
}

// What a row's best code, kept out of the sums, adds to them in the end.
struct BestShare {
  double p, inverse_mass, weight, weight_sum;
};

// B is divided by the sum of the rounded p: `sum_j x_j (w_j - B)` needs weights that sum to 1, and `weight_sum`, sigma
// less beta t, is the sum of the rounded x: both matter where equal codes share a row's mass.
CPK_SHARED_FUNCTION BestShare best_share(double others, double mass_of_others, double weights_of_others,
                                         double prior_weight, double beta, double partner_u) {
  const double p = 1 / (1 + others), weight = prior_weight - beta * kLn2 * p * partner_u;
  return {p, 1 / (mass_of_others + p), weight, weights_of_others + weight};
}

// A coordinate of B and of the gradient of a row (up to 1/(2 n temperature)) from the sums over all other codes.
template <class Value>
CPK_SHARED_FUNCTION Value expected_coordinate(Value expected_of_others, Value best_p, Value inverse_mass, Value code) {
  return (expected_of_others + best_p * code) * inverse_mass;
}

// `E - (sigma - beta t) B + beta (B - B')`, B' the partner's.
template <class Value>
CPK_SHARED_FUNCTION Value gradient_coordinate(Value pull, Value weight_sum, Value expected, Value partner_expected,
                                              double beta) {
  return pull - weight_sum * expected + beta * (expected - partner_expected);
}

}  // namespace cplearn
