// Sums of weighted codes on their way out: added up over splits, the best code put back; gradients and expected codes.
#include "../launch.cuh"
#include "../rows.h"
#include "code_sign.cuh"

namespace cplearn::cuda {
namespace {

constexpr int kThreads = 128;

__device__ int64_t place_of(const FinishSums& a, int32_t k) { return a.place_of != nullptr ? a.place_of[k] : k; }

// Over all splits: the sums of weighted codes and of p times the codes, where they were made.
template <bool kPull, bool kExpected>
struct PlaceSums {
  double pull = 0, expected = 0;
  __device__ PlaceSums(const FinishSums& a, int64_t row, int64_t place) {
    const int64_t of_one_kind = a.rows * a.width, split_stride = 2 * of_one_kind, at = row * a.width + place;
    for (int split = 0; split < a.splits; ++split) {
      const double* const sums = a.sums + split * split_stride + at;
      if (kExpected) expected += sums[of_one_kind];
      if (kPull) pull += sums[0];
    }
  }
};

struct CollectSumsArguments {
  FinishSums sums;
  double* out;
};

// Grid (rows, 128 coordinates).
__global__ void __launch_bounds__(kThreads) collect_sums_kernel(const CollectSumsArguments a) {
  const int32_t k = int32_t(blockIdx.y * kThreads + threadIdx.x);
  if (k >= a.sums.codes.num_features) return;
  const PlaceSums<true, true> sums(a.sums, blockIdx.x, place_of(a.sums, k));
  const int64_t at = int64_t(blockIdx.x) * a.sums.codes.num_features + k;
  a.out[at] = sums.pull;
  a.out[at + int64_t(gridDim.x) * a.sums.codes.num_features] = sums.expected;
}

// A thread per coordinate of a row, or of a pair of rows for the loss. Grid (rows of a view, 128 coordinates).
template <Result kResult>
__global__ void __launch_bounds__(kThreads) finish_sums_kernel(const FinishSums a) {
  constexpr int kViews = kResult == Result::kLossGradient ? 2 : 1;
  const int32_t k = int32_t(blockIdx.y * kThreads + threadIdx.x);
  if (k < a.codes.num_features) {
    const int64_t place = place_of(a, k);
    double expected[kViews], pull[kViews], code[kViews];
#pragma unroll
    for (int view = 0; view < kViews; ++view) {
      const int64_t row = int64_t(blockIdx.x) + view * a.per_view;
      const PlaceSums<kResult != Result::kExpectedCode, kResult != Result::kGivenWeights> sums(a, row, place);
      pull[view] = sums.pull;
      if constexpr (kResult == Result::kGivenWeights) continue;
      const int32_t best = a.code[row];
      code[view] = best != kElsewhere ? code_sign(a.codes, best, k) : 0.0f;
      expected[view] = expected_coordinate(sums.expected, a.shares[row].p, a.shares[row].inverse_mass, code[view]);
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

}  // namespace

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

void collect_sums(const Call& call, const FinishSums& a, int32_t rows, double* out) {
  launch("collect_sums", collect_sums_kernel, {unsigned(rows), unsigned(ceil_div(a.codes.num_features, kThreads))},
         kThreads, 0, call, CollectSumsArguments{a, out});
}

}  // namespace cplearn::cuda
