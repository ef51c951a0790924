// Partial results merged in a fixed order, and rows on their way out: losses, gradients, expected codes.
#include "best_codes.cuh"
#include "code_sign.cuh"
#include "launch.cuh"
#include "rows.h"

namespace cplearn::cuda {
namespace {

constexpr int kThreads = 128;

dim3 blocks_for(int64_t items) { return {unsigned(ceil_div(items, kThreads))}; }

__device__ int64_t global_thread() { return int64_t(blockIdx.x) * kThreads + threadIdx.x; }

struct MergeBestArguments {
  const float* best;
  const double* others;
  const int32_t* code;
  int parts;
  int32_t total;
  bool first, last;
  int64_t num_codes;
  RowState state;
};

__global__ void __launch_bounds__(kThreads) merge_best_kernel(const MergeBestArguments a) {
  const int64_t row = global_thread();
  if (row >= a.total) return;
  BestCode found{kNoLogit, kNoCode, 0.0};
  if (!a.first) found = {a.state.best[row], a.state.code[row], a.state.others[row]};
  for (int part = 0; part < a.parts; ++part) {
    const int64_t at = int64_t(part) * a.total + row;
    found = merged(found, {a.best[at], a.code[at], a.others[at]});
  }
  if (a.last) {
    a.state.inverse_sum[row] = float(1 / (1 + found.others));
    a.state.shift[row] = float((log(double(a.num_codes)) - log1p(found.others)) * kLog2E);
    if (found.code == kNoCode) found.code = 0;  // a row of NaN
  }
  a.state.best[row] = found.best, a.state.others[row] = found.others, a.state.code[row] = found.code;
}

// Each warp adds its codes' terms to a part of its own.
__global__ void __launch_bounds__(kThreads) finish_columns_kernel(const FinishColumns a) {
  const int64_t threads = int64_t(gridDim.x) * kThreads;
  const bool logs = a.weights == Weights::kCrossEntropy;
  double terms = 0;
  for (int64_t i = global_thread(); i < a.views * a.stride; i += threads) {
    const int64_t view = i / a.stride, code = i % a.stride;
    if (code >= a.span.count) {
      a.slope[i] = 0;
      if (logs) a.top_out[i] = 0;
      continue;
    }
    const auto at = [&](int split) { return (int64_t(split) * a.views + view) * a.span.count + code; };
    const double q = a.q != nullptr ? double(a.q[code]) : 1 / double(a.num_codes);
    if (logs) {
      float top = kNoLogit;
      for (int split = 0; split < a.splits; ++split) top = fmaxf(top, a.top[at(split)]);
      double sum = 0;
      for (int split = 0; split < a.splits; ++split) {
        sum += double(a.sums[at(split)]) * exp2(double(a.top[at(split)]) - double(top));
      }
      a.slope[i] = float(cross_entropy_slope(q, a.rows, sum));
      a.top_out[i] = top;
      // An impossible code costs nothing; q = 0 times the logarithm of 0 would be NaN.
      if (q > 0) terms += cross_entropy_term(q, a.rows, double(a.num_codes), top, sum);
      else terms += 0 * sum;
      continue;
    }
    double sum = 0;
    for (int split = 0; split < a.splits; ++split) sum += double(a.sums[at(split)]);
    const double mean = sum / a.rows;
    if (a.weights == Weights::kNone) {
      a.slope[i] = float(mean);
      continue;
    }
    // Where p̄ underflows, p is 0 in every row and any finite g will do. Written so that a NaN stays one.
    const double g = log((mean < 1e-37 ? 1e-37 : mean) / q);
    a.slope[i] = float(g);
    terms += mean * g;
  }
  if (a.prior == nullptr) return;
  for (int mask = 1; mask < 32; mask <<= 1) terms += shuffle_xor(terms, mask);
  if (threadIdx.x % 32 == 0) a.prior[global_thread() / 32] += terms;
}

struct CopyColumnsArguments {
  const float* from;
  int64_t count, stride;
  float* to;
};

__global__ void __launch_bounds__(kThreads) copy_columns_kernel(const CopyColumnsArguments a) {
  const int64_t i = global_thread();
  if (i < a.stride) a.to[i] = i < a.count ? a.from[i] : 0.0f;
}

__global__ void __launch_bounds__(kThreads) finish_rows_kernel(const FinishRows a) {
  const int64_t row = global_thread();
  if (row >= a.total) return;
  double mass = 0, weight = 0, agreement = 0;
  for (int part = 0; part < a.parts; ++part) {
    const int64_t at = int64_t(part) * a.total + row;
    mass += a.mass[at], weight += a.weight[at], agreement += a.agreement[at];
  }
  const bool pair = a.best_weight != nullptr;
  const BestShare share = best_share(a.rows.others[row], mass, weight, pair ? a.best_weight[row] : 0, pair ? a.beta : 0,
                                     pair ? double(a.best_partner[row]) : 0);
  a.shares[row] = share;
  if (pair) a.row_agreement[row] = agreement + double(a.best_partner[row]) * share.p;
}

struct FinishLossArguments {
  const double *row_agreement, *prior;
  int32_t total;
  double beta;
  int64_t num_codes;
  float* out;
  double* scratch;  // (2, warps)
};

constexpr int kLossThreads = 1024;

__global__ void __launch_bounds__(kLossThreads) finish_loss_kernel(const FinishLossArguments a) {
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  constexpr int kWarps = kLossThreads / 32;
  double agreement = 0, prior = 0;
  for (int32_t row = int32_t(threadIdx.x); row < a.total; row += kLossThreads) agreement += a.row_agreement[row];
  for (int part = int(threadIdx.x); part < kPriorParts; part += kLossThreads) prior += a.prior[part];
  for (int mask = 1; mask < 32; mask <<= 1) {
    agreement += shuffle_xor(agreement, mask);
    prior += shuffle_xor(prior, mask);
  }
  if (lane == 0) a.scratch[warp] = agreement, a.scratch[kWarps + warp] = prior;
  sync_block();
  if (warp != 0) return;
  agreement = a.scratch[lane], prior = a.scratch[kWarps + lane];
  for (int mask = 1; mask < 32; mask <<= 1) {
    agreement += shuffle_xor(agreement, mask);
    prior += shuffle_xor(prior, mask);
  }
  if (lane != 0) return;
  const double invariance = log(double(a.num_codes)) - kLn2 * agreement / double(a.total);
  a.out[0] = float(prior / 2 + a.beta * invariance);
  a.out[1] = float(invariance);
  a.out[2] = float(prior / 2);
}

// A thread per coordinate of a row, or of a pair of rows for the loss. Grid (rows of a view, 128 coordinates).
template <Result kResult>
__global__ void __launch_bounds__(kThreads) finish_sums_kernel(const FinishSums a) {
  constexpr int kViews = kResult == Result::kLossGradient ? 2 : 1;
  const int64_t split_stride = 2 * a.rows * a.width;
  const int32_t k = int32_t(blockIdx.y * kThreads + threadIdx.x);
  if (k < a.codes.num_features) {
    const int64_t place = a.place_of != nullptr ? a.place_of[k] : k;
    double expected[kViews], pull[kViews], code[kViews];
#pragma unroll
    for (int view = 0; view < kViews; ++view) {
      const int64_t row = int64_t(blockIdx.x) + view * a.per_view, at = row * a.width + place;
      expected[view] = pull[view] = 0;
      for (int split = 0; split < a.splits; ++split) {
        const double* sums = a.sums + split * split_stride + at;
        if (kResult != Result::kGivenWeights) expected[view] += sums[a.rows * a.width];
        if (kResult != Result::kExpectedCode) pull[view] += sums[0];
      }
      if constexpr (kResult == Result::kGivenWeights) continue;
      code[view] = code_sign(a.codes, a.code[row], k);
      expected[view] = expected_coordinate(expected[view], a.shares[row].p, a.shares[row].inverse_mass, code[view]);
    }
#pragma unroll
    for (int view = 0; view < kViews; ++view) {
      const int64_t row = int64_t(blockIdx.x) + view * a.per_view;
      double value = pull[view];
      if constexpr (kResult == Result::kExpectedCode) value = expected[view];
      if constexpr (kResult == Result::kGradient) value = pull[view] - a.shares[row].weight_sum * expected[view];
      if constexpr (kResult == Result::kLossGradient) {
        value = gradient_coordinate(pull[view] + a.shares[row].weight * code[view], a.shares[row].weight_sum,
                                    expected[view], expected[kViews - 1 - view], a.beta);
      }
      float* const out = view == 0 ? a.out[0] : a.out[1];
      out[int64_t(blockIdx.x) * a.codes.num_features + k] = float(a.scale * value);
    }
  }
}

struct RowResultArguments {
  RowState rows;
  int32_t total;
  float* out;
  int64_t* codes;
};

__global__ void __launch_bounds__(kThreads) finish_logsumexp_kernel(const RowResultArguments a) {
  const int64_t row = global_thread();
  if (row < a.total) a.out[row] = float(kLn2 * double(a.rows.best[row]) + log1p(a.rows.others[row]));
}

__global__ void __launch_bounds__(kThreads) finish_scores_kernel(const RowResultArguments a) {
  const int64_t row = global_thread();
  if (row >= a.total) return;
  const double others = a.rows.others[row];  // NaN for a row that is not finite, else anything up to infinity
  a.out[row] = others != others ? NAN : a.rows.best[row];
  a.codes[row] = a.rows.code[row];
}

}  // namespace

void merge_best(const Call& call, const float* best, const double* others, const int32_t* code, int parts, int32_t total,
                bool first, bool last, int64_t num_codes, const RowState& state) {
  launch("merge_best", merge_best_kernel, blocks_for(total), kThreads, 0, call,
         MergeBestArguments{best, others, code, parts, total, first, last, num_codes, state});
}

void finish_columns(const Call& call, const FinishColumns& a) {
  const int64_t blocks = ceil_div(a.views * a.stride, kThreads), most = kPriorParts / (kThreads / 32);
  launch("finish_columns", finish_columns_kernel, {unsigned(blocks < most ? blocks : most)}, kThreads, 0, call, a);
}

void copy_columns(const Call& call, const float* from, int64_t count, int64_t stride, float* to) {
  launch("copy_columns", copy_columns_kernel, blocks_for(stride), kThreads, 0, call,
         CopyColumnsArguments{from, count, stride, to});
}

void finish_rows(const Call& call, const FinishRows& a) {
  launch("finish_rows", finish_rows_kernel, blocks_for(a.total), kThreads, 0, call, a);
}

void finish_loss(Call& call, const double* row_agreement, int32_t total, const double* prior, double beta,
                 int64_t num_codes, float* out) {
  double* const scratch = call.take<double>(2 * kLossThreads / 32);
  launch("finish_loss", finish_loss_kernel, {1}, kLossThreads, 0, call,
         FinishLossArguments{row_agreement, prior, total, beta, num_codes, out, scratch});
}

void finish_sums(const Call& call, const FinishSums& a, Result result) {
  const dim3 grid{unsigned(a.per_view), unsigned(ceil_div(a.codes.num_features, kThreads))};
  switch (result) {
    case Result::kLossGradient:
      return launch("finish_sums", finish_sums_kernel<Result::kLossGradient>, grid, kThreads, 0, call, a);
    case Result::kExpectedCode:
      return launch("finish_sums", finish_sums_kernel<Result::kExpectedCode>, grid, kThreads, 0, call, a);
    case Result::kGradient:
      return launch("finish_sums", finish_sums_kernel<Result::kGradient>, grid, kThreads, 0, call, a);
    case Result::kGivenWeights:
      return launch("finish_sums", finish_sums_kernel<Result::kGivenWeights>, grid, kThreads, 0, call, a);
  }
}

void finish_logsumexp(const Call& call, const RowState& rows, int32_t total, float* out) {
  launch("finish_logsumexp", finish_logsumexp_kernel, blocks_for(total), kThreads, 0, call,
         RowResultArguments{rows, total, out, nullptr});
}

void finish_scores(const Call& call, const RowState& rows, int32_t total, float* scores, int64_t* codes) {
  launch("finish_scores", finish_scores_kernel, blocks_for(total), kThreads, 0, call,
         RowResultArguments{rows, total, scores, codes});
}

}  // namespace cplearn::cuda
