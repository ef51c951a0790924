// Rows on their way into the passes, and single products with their best codes.
#include "../launch.cuh"
#include "../rows.h"
#include "code_sign.cuh"
#include "hadamard_tile.cuh"
#include "mma_fragment_layout.cuh"

namespace cplearn::cuda {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;

__device__ float element(const Batch& batch, int64_t row, int64_t k) {
  const Matrix view = row < batch.per_view ? batch.views[0] : batch.views[1];
  const int64_t at = (row < batch.per_view ? row : row - batch.per_view) * view.row_stride + k * view.column_stride;
  if (view.dtype == Dtype::kFloat32) return static_cast<const float*>(view.data)[at];
  const uint16_t bits = static_cast<const uint16_t*>(view.data)[at];
  return view.dtype == Dtype::kFloat16 ? half_value(bits) : float_of(uint32_t(bits) << 16);
}

// Of warps that take a row each: the row, whether it exists, the lane.
struct RowOfWarp {
  int64_t row;
  bool exists;
  int lane;
  __device__ explicit RowOfWarp(int64_t rows)
      : row(int64_t(blockIdx.x) * kWarps + threadIdx.x / 32), exists(row < rows), lane(int(threadIdx.x) % 32) {
    if (!exists) row = rows - 1;
  }
};

// Times the factor, in double precision; sums of `width` such numbers stay finite.
__device__ float scaled(float x, double factor, double limit) {
  const double value = double(x) * factor;
  return float(value > limit ? limit : value < -limit ? -limit : value);
}

__device__ bool row_is_finite(const Batch& batch, int64_t row, int lane) {
  bool finite = true;
  for (int64_t k = lane; k < batch.num_features; k += 32) {
    const float x = element(batch, row, k);
    finite = finite && x - x == 0.0f;
  }
  return warp_ballot(!finite) == 0;
}

struct PrepareArguments {
  Batch batch;
  double factor;
  int log2_block;
  const int32_t* coordinate_at;
  float* out;
};

// A block of threads per row: small batches are short of work, not of blocks.
__global__ void __launch_bounds__(kThreads) prepare_rows_kernel(const PrepareArguments a) {
  const int64_t row = blockIdx.x;
  bool finite = true;
  for (int64_t k = threadIdx.x; k < a.batch.num_features; k += kThreads) {
    const float x = element(a.batch, row, k);
    finite = finite && x - x == 0.0f;
  }
  const Shared shared = shared_memory();
  const uint32_t bad = warp_ballot(!finite);
  if (threadIdx.x % 32 == 0) shared.store(int(threadIdx.x) / 32, bad != 0 ? 1.0f : 0.0f);
  sync_block();
  float any_bad = 0;
  for (int warp = 0; warp < kWarps; ++warp) any_bad += shared.load(warp);
  const int block = 1 << a.log2_block;
  const HadamardOrder order = HadamardOrder::of(a.log2_block);
  for (int i = int(threadIdx.x); i < block; i += kThreads) {
    const int32_t k = a.coordinate_at[HadamardOrder::place_at(order, i)];
    const float value = k < 0 ? 0.0f : scaled(element(a.batch, row, k), a.factor, 1e30 / block);
    a.out[row * block + i] = any_bad == 0 ? value : NAN;
  }
}

struct HalvesArguments {
  Batch batch;
  double factor;
  int64_t width;
  uint32_t *high, *low;
  float* scales;
};

__global__ void __launch_bounds__(kThreads) prepare_halves_kernel(const HalvesArguments a) {
  const RowOfWarp here(Batch::rows_of(a.batch));
  const bool finite = row_is_finite(a.batch, here.row, here.lane);
  const double limit = 1e30 / double(a.width);
  float largest = 0;
  for (int64_t k = here.lane; finite && k < a.batch.num_features; k += 32) {
    largest = fmaxf(largest, fabsf(scaled(element(a.batch, here.row, k), a.factor, limit)));
  }
  for (int mask = 1; mask < 32; mask <<= 1) largest = fmaxf(largest, shuffle_xor(largest, mask));
  const PowerOfTwoScale scale = power_of_two_scale(largest);
  if (!here.exists) return;
  const auto number = [&](int64_t k) {
    const bool some = finite && k < a.batch.num_features;
    return some ? scaled(element(a.batch, here.row, k), a.factor, limit) * scale.up : 0.0f;
  };
  for (int64_t i = here.lane; i < a.width / 2; i += 32) {
    const int64_t word = i / 16;
    const int t = int(i % 4), q = int(i / 4 % 2), j = int(i / 8 % 2);
    const int64_t k = word * 32 + 8 * j + 4 * q + t;
    uint16_t high_0, high_1, low_0, low_1;
    in_two_halves(number(k), high_0, low_0);
    in_two_halves(number(k + 16), high_1, low_1);
    const int64_t at = pair_index(here.row, word, a.width / 32, t, j, q);
    a.high[at] = high_0 | uint32_t(high_1) << 16;
    a.low[at] = low_0 | uint32_t(low_1) << 16;
  }
  if (here.lane == 0) a.scales[here.row] = finite ? scale.down : NAN;
}

struct ProductsArguments {
  Batch batch;
  Codes codes;
  const int32_t* code;
  float* out;
};

__global__ void __launch_bounds__(kThreads) products_at_best_kernel(const ProductsArguments a) {
  const RowOfWarp here(Batch::rows_of(a.batch));
  const int64_t code = a.code[here.row];
  double sum = 0;
  for (int32_t k = here.lane; k < a.batch.num_features; k += 32) {
    sum += double(element(a.batch, here.row, k)) * double(code_sign(a.codes, code, k));
  }
  sum = warp_sum(sum);
  if (here.exists && here.lane == 0) a.out[here.row] = float(sum);
}

struct GatherArguments {
  const float* per_code;
  const int32_t* code;
  int32_t rows;
  float* out;
};

__global__ void __launch_bounds__(kThreads) gather_kernel(const GatherArguments a) {
  const int32_t row = int32_t(blockIdx.x * kThreads + threadIdx.x);
  if (row < a.rows) a.out[row] = a.per_code[a.code[row]];
}

struct DotsArguments {
  const float *p, *v;
  int32_t rows;
  int64_t num_codes;
  double* out;
};

__global__ void __launch_bounds__(kThreads) row_dots_kernel(const DotsArguments a) {
  const RowOfWarp here(a.rows);
  double sum = 0;
  for (int64_t j = here.lane; j < a.num_codes; j += 32) {
    sum += double(a.p[here.row * a.num_codes + j]) * double(a.v[here.row * a.num_codes + j]);
  }
  sum = warp_sum(sum);
  if (here.exists && here.lane == 0) a.out[here.row] = sum;
}

dim3 warps_for(int64_t rows) { return {unsigned(ceil_div(rows, kWarps))}; }

}  // namespace

void prepare_rows(const Call& call, const Batch& batch, double factor, int log2_block, const int32_t* coordinate_at,
                  float* out) {
  launch("prepare_rows", prepare_rows_kernel, {unsigned(Batch::rows_of(batch))}, kThreads, 4 * kWarps, call,
         PrepareArguments{batch, factor, log2_block, coordinate_at, out});
}

void prepare_halves(const Call& call, const Batch& batch, double factor, int64_t width, uint32_t* high, uint32_t* low,
                    float* scales) {
  launch("prepare_halves", prepare_halves_kernel, warps_for(Batch::rows_of(batch)), kThreads, 0, call,
         HalvesArguments{batch, factor, width, high, low, scales});
}

void products_at_best(const Call& call, const Batch& batch, const Codes& codes, const int32_t* code, float* out) {
  launch("products_at_best", products_at_best_kernel, warps_for(Batch::rows_of(batch)), kThreads, 0, call,
         ProductsArguments{batch, codes, code, out});
}

void fill_with_zeros(const Call& call, void* p, size_t bytes) { launch_zeros("fill_with_zeros", p, bytes, call); }

void gather_at_best(const Call& call, const float* per_code, const int32_t* code, int32_t rows, float* out) {
  launch("gather_at_best", gather_kernel, blocks_for(rows, kThreads), kThreads, 0, call,
         GatherArguments{per_code, code, rows, out});
}

void row_dots(const Call& call, const float* p, const float* v, int32_t rows, int64_t num_codes, double* out) {
  launch("row_dots", row_dots_kernel, warps_for(rows), kThreads, 0, call, DotsArguments{p, v, rows, num_codes, out});
}

}  // namespace cplearn::cuda
