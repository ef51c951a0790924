// What the passes over all codes are told: rows, the span of codes, where results go.
//
// Rows are those of one view or two, view 1 after view 0: `total` of them, `per_view` each. Codes come in spans, and a
// span in blocks; a tile is one row with one block, worked on by a team of threads (hadamard_tile.cuh,
// stored_tile.cuh).
#pragma once

#include "../formulas.h"
#include "call.h"

namespace cplearn::cuda {

// What tiles read, and, for stored ones, write.
struct TileData {
  const float* rows;      // Hadamard: prepared rows (total, block). Stored: products (total, stride) of the span
  const uint32_t* signs;  // Hadamard: sign bits of the span's blocks, a word per thread of a team
  int64_t stride;         // stored: codes of the span, rounded up to whole blocks
  // Stored: pairs of half floats of a span's weights, in the order of mma_fragment_layout.cuh, and what they are to be
  // multiplied with, (rows, blocks): of the weights from row 0, of p from row `weight_rows` on.
  uint32_t *high, *low;
  float* scales;
  int64_t weight_rows;
};

// Codes first … first + count - 1 of the dictionary, or of the range of one that a rank works on; `first` is a multiple
// of the block size.
struct Span {
  int64_t first;
  int32_t count;
};

// What the first pass leaves for each row, (total) each; the logits are in powers of two.
struct RowState {
  float* best;         // the largest logit
  float* inverse_sum;  // p of the best code
  float* shift;        // log2(c p) of the best code
  double* others;      // the sum of 2^(logit - best) over the other codes
  int32_t* code;       // the best code, the lowest of equals; or kElsewhere
};

struct BestCodesArguments {
  TileData tile;
  Span span;
  int32_t total;
  int32_t blocks_per_split;
  // (splits * parts, total)
  float* best;
  double* others;
  int32_t* code;
};

struct ColumnSumsArguments {
  TileData tile;
  Span span;
  int32_t per_view;
  int32_t rows_per_split;
  RowState rows;
  float* sums;  // (splits, views, count): of p, or of 2^(u - top)
  float* top;   // (splits, views, count): the largest u, for the prior's cross entropy; else null
};

// What codes are weighted with besides p: nothing; a number per code; the products with a second array of rows; what
// the loss's gradient asks for.
enum class Weights : int { kNone, kPerCode, kProducts, kReverseKL, kCrossEntropy };

struct WeightedCodesArguments {
  TileData tile;
  const float* second;  // kProducts: as tile.rows, of the second array
  Span span;
  int32_t total, per_view;
  int32_t blocks_per_split;
  Weights weights;
  float beta_ln2;
  RowState rows;
  int64_t column_stride;  // count, rounded up to whole blocks
  const float* slope;     // (views, column_stride): g of the span, zeros behind it; kPerCode: the codes' numbers
  const float* top;       // kCrossEntropy: likewise
  const float* centre;   // kPerCode, kProducts: (total), subtracted from the weights
  // Hadamard: (splits, 2, total, block), of the weighted codes and of p times the codes; added to, but for the first
  // span
  double* sums;
  // (splits * parts, total), added to: the sums of p, of the weights and of p times the partner's u
  double *mass, *weight, *cross_term;
  // (total), written where a row's best code is one of these codes
  double* best_weight;  // the prior's part of its weight
  float* best_partner;  // the partner's u at it
};

struct ProbabilitiesArguments {
  TileData tile;
  Span span;
  int32_t total;
  RowState rows;
  bool scores;  // the products themselves instead of p
  float* out;   // the span's first column of (total, stride)
  int64_t stride;
};

// Sums of codes with given weights: `p (v - centre)`.
struct GivenWeightsArguments {
  TileData tile;
  Span span;
  int32_t total;
  int32_t blocks_per_split;
  const float *p, *v;  // the span's first columns of (total, stride)
  int64_t stride;
  const double* centre;  // (total)
  double* sums;          // as WeightedCodesArguments::sums
};

}  // namespace cplearn::cuda
