// The functions of the core in double precision, straight from their formulas (cplearn_kernels/reference.py,
// docs/mathematics.md), for the test program. All of it keeps n x c arrays.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../cpu/kernels.h"
#include "../philox.h"

namespace oracle {

using cplearn::CodeKind;
using cplearn::Codes;

struct Matrix {
  int64_t rows, columns;
  std::vector<double> data;
  Matrix(int64_t rows_, int64_t columns_) : rows(rows_), columns(columns_), data(size_t(rows_ * columns_)) {}
  double* operator[](int64_t i) { return data.data() + i * columns; }
  const double* operator[](int64_t i) const { return data.data() + i * columns; }
};

// Entry k of code j of the range (cplearn_kernels/dictionary.py).
inline double sign(const Codes& codes, int64_t j, int64_t k) {
  bool negative;
  if (codes.kind == CodeKind::kPacked) {
    negative = codes.packed[j * cplearn::words_of_code(codes) + k / 32] >> (k % 32) & 1;
  } else {
    const bool hadamard = codes.kind == CodeKind::kHadamard;
    const int64_t code = codes.first_code + j, index = hadamard ? code >> codes.log2_block : code;
    const cplearn::PhiloxStream stream = hadamard ? cplearn::kStreamHadamardSigns : cplearn::kStreamRademacher;
    negative = cplearn::sign_words(codes.seed, stream, uint64_t(index), uint32_t(k / 128)).word[k % 128 / 32] >>
                   (k % 32) & 1;
    if (hadamard) {
      const int64_t within = code & ((int64_t{1} << codes.log2_block) - 1);
      negative ^= __builtin_parityll(uint64_t(codes.positions[k] & within));
    }
  }
  return negative ? -1 : 1;
}

// All codes, one per row: (c, f).
inline Matrix dense(const Codes& codes) {
  Matrix all(codes.num_codes, codes.num_features);
  for (int64_t j = 0; j < all.rows; ++j) {
    for (int64_t k = 0; k < all.columns; ++k) all[j][k] = sign(codes, j, k);
  }
  return all;
}

inline Matrix from_floats(const std::vector<float>& values, int64_t columns) {
  Matrix m(int64_t(values.size()) / columns, columns);
  std::copy(values.begin(), values.end(), m.data.begin());
  return m;
}

// h_i · w_j / temperature.
inline Matrix logits(const Matrix& h, const Matrix& w, double temperature) {
  Matrix s(h.rows, w.rows);
  for (int64_t i = 0; i < h.rows; ++i) {
    for (int64_t j = 0; j < w.rows; ++j) {
      double sum = 0;
      for (int64_t k = 0; k < w.columns; ++k) sum += h[i][k] * w[j][k];
      s[i][j] = sum / temperature;
    }
  }
  return s;
}

inline std::vector<double> logsumexp(const Matrix& s) {
  std::vector<double> result;
  for (int64_t i = 0; i < s.rows; ++i) {
    const double best = *std::max_element(s[i], s[i] + s.columns);
    double sum = 0;
    for (int64_t j = 0; j < s.columns; ++j) sum += std::exp(s[i][j] - best);
    result.push_back(best + std::log(sum));
  }
  return result;
}

inline Matrix log_softmax(Matrix s) {
  const std::vector<double> lse = logsumexp(s);
  for (int64_t i = 0; i < s.rows; ++i) {
    for (int64_t j = 0; j < s.columns; ++j) s[i][j] -= lse[size_t(i)];
  }
  return s;
}

inline Matrix exp(Matrix m) {
  for (double& value : m.data) value = std::exp(value);
  return m;
}

// sum_j x_ij w_j, (n, f).
inline Matrix sum_codes(const Matrix& x, const Matrix& w) {
  Matrix total(x.rows, w.columns);
  for (int64_t i = 0; i < x.rows; ++i) {
    for (int64_t j = 0; j < w.rows; ++j) {
      for (int64_t k = 0; k < w.columns; ++k) total[i][k] += x[i][j] * w[j][k];
    }
  }
  return total;
}

// The gradient with respect to h of a function of p whose derivative by p_ij is v_ij:
// 1/temperature * sum_j p_ij (v_ij - sum_k p_ik v_ik) w_j.
inline Matrix softmax_backward(const Matrix& p, const Matrix& v, const Matrix& w, double temperature) {
  Matrix x = p;
  for (int64_t i = 0; i < p.rows; ++i) {
    double centre = 0;
    for (int64_t j = 0; j < p.columns; ++j) centre += p[i][j] * v[i][j];
    for (int64_t j = 0; j < p.columns; ++j) x[i][j] = p[i][j] * (v[i][j] - centre) / temperature;
  }
  return sum_codes(x, w);
}

struct Loss {
  double invariance, prior;
  Matrix grad[2];
};

// The CPLearn loss and its gradients; the derivative by log p of both views is formed and handed through the softmax.
inline Loss loss(const Matrix (&h)[2], const Matrix& w, const cplearn::LossRequest& request) {
  const int64_t n = h[0].rows, c = w.rows;
  Loss result{0, 0, {Matrix(n, w.columns), Matrix(n, w.columns)}};
  const Matrix log_p[2] = {log_softmax(logits(h[0], w, request.temperature)),
                           log_softmax(logits(h[1], w, request.temperature))};
  const Matrix p[2] = {exp(log_p[0]), exp(log_p[1])};
  for (int a = 0; a < 2; ++a) {
    Matrix x(n, c);  // dL/ds before the softmax's own backward: d_ij - p_ij sum_k d_ik, d the derivative by log p
    for (int64_t j = 0; j < c; ++j) {
      double best = -INFINITY;
      for (int64_t i = 0; i < n; ++i) best = std::max(best, log_p[a][i][j]);
      double sum = 0;
      for (int64_t i = 0; i < n; ++i) sum += std::exp(log_p[a][i][j] - best);
      const double log_mean = best + std::log(sum / double(n));
      const double q = request.prior_probs == nullptr ? 1.0 / double(c) : double(request.prior_probs[j]);
      const bool reverse = request.prior == cplearn::Prior::kReverseKL;
      result.prior += (reverse ? std::exp(log_mean) * (log_mean - std::log(q)) : -q * log_mean) / 2;
      for (int64_t i = 0; i < n; ++i) {
        // dp̄/d(log p_ij) = p_ij / n; the derivative of the prior by p̄ up to a constant, which the softmax removes.
        const double prior = reverse ? p[a][i][j] * (log_mean - std::log(q)) / double(n)
                                     : -q * std::exp(log_p[a][i][j] - log_mean) / double(n);
        const double cross = p[a][i][j] * log_p[1 - a][i][j], own = p[1 - a][i][j];
        result.invariance -= cross / double(2 * n);
        x[i][j] = (prior - request.beta * (cross + own) / double(n)) / 2;
      }
    }
    for (int64_t i = 0; i < n; ++i) {
      double total = 0;
      for (int64_t j = 0; j < c; ++j) total += x[i][j];
      for (int64_t j = 0; j < c; ++j) x[i][j] = (x[i][j] - p[a][i][j] * total) / request.temperature;
    }
    result.grad[a] = sum_codes(x, w);
  }
  return result;
}

inline double norm(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value * value;
  return std::sqrt(sum);
}

}  // namespace oracle
