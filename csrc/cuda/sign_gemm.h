// Products with a matrix of ±1 that exists only as bits, on the tensor cores.
#pragma once

#include "call.h"

namespace cplearn::cuda {

// The matrix on the left: `rows` rows of `width` numbers as two half floats each, in the order of
// mma_fragment_layout.cuh, whose memory has room for `row_stride` numbers a row and for rows up to a multiple of 16;
// what a row's numbers are to be multiplied with, for each 128 of them or, with `one_scale`, all alike.
struct Halves {
  const uint32_t *high, *low;
  const float* scales;
  int64_t rows, width, row_stride;
  int64_t scale_stride;  // scales of a row
  bool one_scale;
};

// Right: `columns` columns of `width` sign bits, in words side by side.
struct Signs {
  const uint32_t* bits;
  int64_t columns;
};

// out = left * right, float32 (rows, out_stride).
void sign_gemm(const Call&, const Halves& left, const Signs& right, float* out, int64_t out_stride);

// out[split] += left * right over the split's share of the width, float64 (rows, columns), `split_stride` apart.
void add_sign_gemm(const Call&, const Halves& left, const Signs& right, int splits, double* out,
                      int64_t split_stride);

}  // namespace cplearn::cuda
