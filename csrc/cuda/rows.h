// The small kernels around the passes: rows on their way in, bits of the codes, merging of partial results, rows on
// their way out. prologue.cu, signs.cu, epilogue.cu and epilogue_sums.cu hold them; everything is launched on the
// call's stream.
#pragma once

#include "arguments.h"

namespace cplearn::cuda {

enum class Dtype : int { kFloat32 = 0, kBfloat16 = 1, kFloat16 = 2 };

// An (n, f) array of the caller's, strides in elements.
struct Matrix {
  const void* data;
  Dtype dtype;
  int64_t row_stride, column_stride;
};

// Two views of `per_view` rows, or one.
struct Batch {
  Matrix views[2];
  int num_views;
  int32_t per_view;
  int32_t num_features;
  CPK_SHARED_FUNCTION int32_t rows_of(const Batch& batch) { return batch.num_views * batch.per_view; }
};

// Where the passes expect what belongs to a row: the place of each coordinate, and the coordinate at each place or -1;
// null for independent codes, whose coordinates stay where they are.
struct Places {
  const int32_t* of_coordinate;
  const int32_t* coordinate_at;
};

// ---- prologue.cu ----

// Rows times `factor`, clamped so that no sum overflows, in HadamardOrder: (total, block). A row that is not finite
// becomes NaN.
void prepare_rows(const Call&, const Batch&, double factor, int log2_block, const int32_t* coordinate_at, float* out);
// The same as pairs of half floats in the order of mma_fragment_layout.cuh, and what to multiply them with (total).
void prepare_halves(const Call&, const Batch&, double factor, int64_t width, uint32_t* high, uint32_t* low,
                    float* scales);
// `out_i = h_i · w_code(i)` of the rows of one view, with the codes of `code`.
void products_at_best(const Call&, const Batch&, const Codes&, const int32_t* code, float* out);
// `out_i = v_code(i)`.
void gather_at_best(const Call&, const float* per_code, const int32_t* code, int32_t rows, float* out);
// `out_i = sum_j p_ij v_ij`, both (rows, num_codes).
void row_dots(const Call&, const float* p, const float* v, int32_t rows, int64_t num_codes, double* out);

void fill_with_zeros(const Call&, void* p, size_t bytes);

// ---- signs.cu ----

// Sign bits of the range's Hadamard blocks first … first + blocks - 1 for HadamardTile: (blocks, block / 32) words.
void block_signs(const Call&, const Codes&, int64_t first, int64_t blocks, const int32_t* coordinate_at, uint32_t* out);
// Sign bits of codes from `first` on for sign_gemm: (columns, width / 32) words, columns in the order of
// mma_fragment_layout.cuh. Columns past the range's end repeat its last code.
void code_bits(const Call&, const Codes&, int64_t first, int64_t columns, int64_t width, uint32_t* out);
// Of those the transpose: (num_features, columns / 32) words, bit i of word w that of code 32 w + i.
void transposed_bits(const Call&, const uint32_t* bits, int64_t columns, int64_t width, int64_t num_features,
                     uint32_t* out);

// ---- epilogue.cu ----

// Merges partial results (parts, total) into `state`, or starts it; the last time also makes the rows' constants.
void merge_best(const Call&, const float* best, const double* others, const int32_t* code, int parts, int32_t total,
                bool first, bool last, int64_t total_codes, const RowState& state);

// A RowState as ranges of codes tell each other, (total) each: `best` is NaN for a row that is not finite.
struct RowSums {
  double *best, *others;
  int32_t* code;
};
void write_row_sums(const Call&, const RowState&, int32_t total, const RowSums& out);
// The inverse, once the ranges are combined; makes the rows' constants.
void read_row_sums(const Call&, const RowSums&, int32_t total, int64_t total_codes, const RowState& state);

// What a span's column sums (splits, views, count) become: p̄ (slope, for Weights::kNone), or g with the prior's terms
// added to `prior` (kPriorParts doubles). `slope` and `top_out` are (views, stride), zero from `count` on.
constexpr int kPriorParts = 8192;
struct FinishColumns {
  const float *sums, *top;
  int splits, views;
  Span span;
  int64_t stride;
  Weights weights;
  const float* q;  // of the span; null for the uniform prior
  int32_t rows;
  int64_t total_codes;
  float *slope, *top_out;
  double* prior;
};
void finish_columns(const Call&, const FinishColumns&);
// Numbers of the caller's, one per code, for the passes: zero from `count` on.
void copy_columns(const Call&, const float* from, int64_t count, int64_t stride, float* to);

// Where the sums of formulas.h, RowScalar, lie: (total) each, in their order.
struct RowScalars {
  double *cross_term, *mass, *weight, *best_weight, *best_partner;
};

// Sums over splits and parts, and what they become.
struct FinishRows {
  const double *mass, *weight, *cross_term;  // (parts, total)
  const double* best_weight;                // (total)
  const float* best_partner;
  RowState rows;
  int parts;
  int32_t total;
  double beta;
  BestShare* shares;   // (total); null for a range, whose sums are not all
  RowScalars scalars;  // null but for `cross_term`, or all
};
void finish_rows(const Call&, const FinishRows&);
// The shares from the scalars of all ranges; `others` as in RowSums.
void share_rows(const Call&, const double* others, const RowScalars&, int32_t total, double beta, BestShare* shares);
// loss, invariance, prior, each the mean over both orders.
void finish_loss(Call&, const double* cross_term, int32_t total, const double* prior, double beta, int64_t total_codes,
                 float* out);
// The prior's terms of a range, of both views.
void finish_prior(Call&, const double* prior, double* out);
void finish_logsumexp(const Call&, const RowState&, int32_t total, float* out);
void finish_scores(const Call&, const RowState&, int32_t total, float* scores, int64_t* codes);

// ---- epilogue_sums.cu ----

struct FinishSums {
  const double* sums;  // (splits, 2, rows, width)
  int splits;
  int64_t width;
  const int32_t* place_of;  // null: the coordinate itself
  const BestShare* shares;
  const int32_t* code;  // kElsewhere: what the best code adds, another range adds
  Codes codes;
  int32_t rows, per_view;
  double beta, scale;
  float* out[2];  // (per_view, num_features) each
};
// What the sums over the other codes give once the best code is put back.
enum class Result : int { kLossGradient, kExpectedCode, kGradient, kGivenWeights };
void finish_sums(const Call&, const FinishSums&, Result);
// The sums over splits alone, by coordinates: (2, rows, num_features). Of `a` only what sums need.
void collect_sums(const Call&, const FinishSums& a, int32_t rows, double* out);

}  // namespace cplearn::cuda
