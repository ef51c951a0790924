// Partial results of rows merged in a fixed order, and what is known of a row on its way out: losses, sums, best codes.
#include "../launch.cuh"
#include "../rows.h"
#include "best_codes.cuh"

namespace cplearn::cuda {
namespace {

constexpr int kThreads = 128;

__device__ int64_t global_thread() { return int64_t(blockIdx.x) * kThreads + threadIdx.x; }

struct MergeBestArguments {
  const float* best;
  const double* others;
  const int32_t* code;
  int parts;
  int32_t total;
  bool first, last;
  int64_t total_codes;
  RowState state;
};

__device__ void set_constants(const RowState& state, int64_t row, double others, int64_t total_codes) {
  state.inverse_sum[row] = float(1 / (1 + others));
  state.shift[row] = float((log(double(total_codes)) - log1p(others)) * kLog2E);
}

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
    set_constants(a.state, row, found.others, a.total_codes);
    if (found.code == kNoCode) found.code = 0;  // a row of NaN
  }
  a.state.best[row] = found.best, a.state.others[row] = found.others, a.state.code[row] = found.code;
}

struct RowSumsArguments {
  RowState state;
  RowSums sums;
  int32_t total;
  int64_t total_codes;
};

__global__ void __launch_bounds__(kThreads) write_row_sums_kernel(const RowSumsArguments a) {
  const int64_t row = global_thread();
  if (row >= a.total) return;
  const double others = a.state.others[row];  // NaN for a row that is not finite; its best is no number of its own
  a.sums.best[row] = others != others ? others : double(a.state.best[row]);
  a.sums.others[row] = others, a.sums.code[row] = a.state.code[row];
}

__global__ void __launch_bounds__(kThreads) read_row_sums_kernel(const RowSumsArguments a) {
  const int64_t row = global_thread();
  if (row >= a.total) return;
  a.state.best[row] = float(a.sums.best[row]);
  a.state.others[row] = a.sums.others[row], a.state.code[row] = a.sums.code[row];
  set_constants(a.state, row, a.sums.others[row], a.total_codes);
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
    const double q = a.q != nullptr ? double(a.q[code]) : 1 / double(a.total_codes);
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
      if (q > 0) terms += cross_entropy_term(q, a.rows, double(a.total_codes), top, sum);
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
  terms = warp_sum(terms);
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
  double mass = 0, weight = 0, cross_term = 0;
  for (int part = 0; part < a.parts; ++part) {
    const int64_t at = int64_t(part) * a.total + row;
    mass += a.mass[at], weight += a.weight[at], cross_term += a.cross_term[at];
  }
  const bool noted = a.best_weight != nullptr && a.rows.code[row] != kElsewhere;
  const double best_weight = noted ? a.best_weight[row] : 0, best_partner = noted ? double(a.best_partner[row]) : 0;
  const BestShare share = best_share(a.rows.others[row], mass, weight, best_weight, a.beta, best_partner);
  if (a.shares != nullptr) a.shares[row] = share;
  const RowScalars& out = a.scalars;
  if (out.cross_term != nullptr) out.cross_term[row] = kLn2 * (cross_term + best_partner * share.p);
  if (out.mass == nullptr) return;
  out.mass[row] = mass, out.weight[row] = weight;
  out.best_weight[row] = best_weight, out.best_partner[row] = best_partner;
}

struct ShareRowsArguments {
  const double* others;
  RowScalars scalars;
  int32_t total;
  double beta;
  BestShare* shares;
};

__global__ void __launch_bounds__(kThreads) share_rows_kernel(const ShareRowsArguments a) {
  const int64_t row = global_thread();
  if (row >= a.total) return;
  const RowScalars& s = a.scalars;
  a.shares[row] = best_share(a.others[row], s.mass[row], s.weight[row], s.best_weight[row], a.beta,
                             s.best_partner[row]);
}

struct FinishLossArguments {
  const double *cross_term, *prior;
  int32_t total;
  double beta;
  int64_t total_codes;
  float* out;
  double* prior_sum;  // or null
  double* scratch;    // (2, warps)
};

constexpr int kLossThreads = 1024;

__global__ void __launch_bounds__(kLossThreads) finish_loss_kernel(const FinishLossArguments a) {
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  constexpr int kWarps = kLossThreads / 32;
  double cross_term = 0, prior = 0;
  for (int32_t row = int32_t(threadIdx.x); row < a.total; row += kLossThreads) cross_term += a.cross_term[row];
  for (int part = int(threadIdx.x); part < kPriorParts; part += kLossThreads) prior += a.prior[part];
  cross_term = warp_sum(cross_term), prior = warp_sum(prior);
  if (lane == 0) a.scratch[warp] = cross_term, a.scratch[kWarps + warp] = prior;
  sync_block();
  if (warp != 0) return;
  cross_term = warp_sum(a.scratch[lane]), prior = warp_sum(a.scratch[kWarps + lane]);
  if (lane != 0) return;
  if (a.prior_sum != nullptr) {
    *a.prior_sum = prior;
    return;
  }
  const double invariance = log(double(a.total_codes)) - cross_term / double(a.total);
  a.out[0] = float(prior / 2 + a.beta * invariance);
  a.out[1] = float(invariance);
  a.out[2] = float(prior / 2);
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

void merge_best(const Call& call, const float* best, const double* others, const int32_t* code, int parts,
                int32_t total, bool first, bool last, int64_t total_codes, const RowState& state) {
  launch("merge_best", merge_best_kernel, blocks_for(total, kThreads), kThreads, 0, call,
         MergeBestArguments{best, others, code, parts, total, first, last, total_codes, state});
}

void write_row_sums(const Call& call, const RowState& state, int32_t total, const RowSums& out) {
  launch("write_row_sums", write_row_sums_kernel, blocks_for(total, kThreads), kThreads, 0, call,
         RowSumsArguments{state, out, total, 0});
}

void read_row_sums(const Call& call, const RowSums& sums, int32_t total, int64_t total_codes, const RowState& state) {
  launch("read_row_sums", read_row_sums_kernel, blocks_for(total, kThreads), kThreads, 0, call,
         RowSumsArguments{state, sums, total, total_codes});
}

void finish_columns(const Call& call, const FinishColumns& a) {
  const int64_t blocks = ceil_div(a.views * a.stride, kThreads), most = kPriorParts / (kThreads / 32);
  launch("finish_columns", finish_columns_kernel, {unsigned(blocks < most ? blocks : most)}, kThreads, 0, call, a);
}

void copy_columns(const Call& call, const float* from, int64_t count, int64_t stride, float* to) {
  launch("copy_columns", copy_columns_kernel, blocks_for(stride, kThreads), kThreads, 0, call,
         CopyColumnsArguments{from, count, stride, to});
}

void finish_rows(const Call& call, const FinishRows& a) {
  launch("finish_rows", finish_rows_kernel, blocks_for(a.total, kThreads), kThreads, 0, call, a);
}

void share_rows(const Call& call, const double* others, const RowScalars& scalars, int32_t total, double beta,
                BestShare* shares) {
  launch("share_rows", share_rows_kernel, blocks_for(total, kThreads), kThreads, 0, call,
         ShareRowsArguments{others, scalars, total, beta, shares});
}

void finish_loss(Call& call, const double* cross_term, int32_t total, const double* prior, double beta,
                 int64_t total_codes, float* out) {
  double* const scratch = call.take<double>(2 * kLossThreads / 32);
  launch("finish_loss", finish_loss_kernel, {1}, kLossThreads, 0, call,
         FinishLossArguments{cross_term, prior, total, beta, total_codes, out, nullptr, scratch});
}

void finish_prior(Call& call, const double* prior, double* out) {
  double* const scratch = call.take<double>(2 * kLossThreads / 32);
  launch("finish_prior", finish_loss_kernel, {1}, kLossThreads, 0, call,
         FinishLossArguments{nullptr, prior, 0, 0, 0, nullptr, out, scratch});
}

void finish_logsumexp(const Call& call, const RowState& rows, int32_t total, float* out) {
  launch("finish_logsumexp", finish_logsumexp_kernel, blocks_for(total, kThreads), kThreads, 0, call,
         RowResultArguments{rows, total, out, nullptr});
}

void finish_scores(const Call& call, const RowState& rows, int32_t total, float* scores, int64_t* codes) {
  launch("finish_scores", finish_scores_kernel, blocks_for(total, kThreads), kThreads, 0, call,
         RowResultArguments{rows, total, scores, codes});
}

}  // namespace cplearn::cuda
