// The columns of the loss's second pass: of each code its mean assignment p̄, its share of the prior, and g, the
// prior's derivative (docs/mathematics.md).
#pragma once

#include <cmath>
#include <cstdint>

#include "../../formulas.h"
#include "../layout.h"
#include "../vector.h"

namespace cplearn::CPK_TARGET {

constexpr float kSmallestMean = 1e-37f;  // keeps a logarithm finite where a mean underflows

// Columns are cut into units of this many codes; at most that many are summed in one call below. A multiple of kLanes.
constexpr int64_t kColumnUnit = 64;

// `tiles` tiles of rows, `stride` floats apart, [code][lane] each.
struct Columns {
  int64_t tiles, stride, rows, total_codes;
  const float* q;  // of these codes; null for the uniform prior
  float* g;
  float* column_max;

  // `sum_j p̄_j log(p̄_j / q_j)` over codes begin … end - 1, and g_j = log(p̄_j / q_j).
  double reverse_kl(const float* p, int64_t begin, int64_t end) const {
    VecDouble prior;
    double last = 0;  // what does not fill a vector
    // A tile at a time: one stream of memory after the other.
    Vec totals[kColumnUnit] = {};
    for (int64_t t = 0; t < tiles; ++t) {
      const float* from = p + t * stride + begin * kLanes;
      for (int64_t i = 0; i < end - begin; ++i) totals[i] = totals[i] + load(from + i * kLanes);
    }
    for (int64_t j = begin; j < end; j += kLanes) {
      const int64_t count = smaller(kLanes, end - j);
      const Vec mean = sums_of_lanes(totals + (j - begin)) / broadcast(float(rows));
      const Vec positive = vmax(mean, broadcast(kSmallestMean));
      Vec log_ratio = log2_positive(positive * broadcast(float(total_codes))) * broadcast(float(kLn2));
      if (q != nullptr) {
        for (int64_t i = 0; i < count; ++i) log_ratio[i] = float(log(double(positive[i]) / double(q[j + i])));
      }
      if (count == kLanes) {
        store(g + j, log_ratio);
        prior = prior + widened(mean) * widened(log_ratio);
        continue;
      }
      for (int64_t i = 0; i < count; ++i) {
        g[j + i] = log_ratio[i];
        last += double(mean[i]) * double(log_ratio[i]);
      }
    }
    return sum_lanes(prior) + last;
  }

  // `-sum_j q_j log p̄_j`, and g_j such that `-q_j exp(log p_ij - log p̄_j) = exp2(u_ij - column_max_j) g_j`: never
  // through 1 / p̄_j, which overflows on aligned codes.
  double cross_entropy(const float* u, int64_t begin, int64_t end) const {
    double prior = 0;
    for (int64_t j = begin; j < end; ++j) {
      Vec best = load(u + j * kLanes);
      for (int64_t t = 1; t < tiles; ++t) best = vmax(best, load(u + t * stride + j * kLanes));
      const float top = max_lanes(best);
      Vec total = broadcast(0.0f);
      for (int64_t t = 0; t < tiles; ++t) {
        total = total + exp2_nonpositive(load(u + t * stride + j * kLanes) - broadcast(top));
      }
      const double sum = sum_lanes(total);
      const double probability = q != nullptr ? double(q[j]) : 1.0 / double(total_codes);
      column_max[j] = top;
      g[j] = float(cross_entropy_slope(probability, double(rows), sum));
      prior += cross_entropy_term(probability, double(rows), double(total_codes), top, sum);
    }
    return prior;
  }
};

}  // namespace cplearn::CPK_TARGET
