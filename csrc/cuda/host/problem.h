// The rows and codes of one call, ready for the passes: working memory, spans of codes, the cut into splits.
#pragma once

#include "../passes.h"
#include "../rows.h"
#include "../sign_gemm.h"

namespace cplearn::cuda {

// How `size` things are cut: into `parts` of `size` each, the last perhaps smaller.
struct Cut {
  int parts, size;
};
// Cuts `count` so that the thread blocks of all parts, `blocks_per_part` each, fill the places that the device has for
// them with the least idle time at the end; of cuts that are about as good, the coarsest.
Cut even_cut(int64_t count, int64_t blocks_per_part, int64_t places);

class Problem {
 public:
  // `factor`: what rows are multiplied with, log2(e) / temperature for logits in powers of two.
  Problem(Call& call, const Codes& codes, const Places& places, const Batch& batch, double factor);

  // A second array of rows, whose products with the codes are weights (Weights::kProducts).
  void add_second(const Batch& second);

  // Pass 1: `state`, or what all ranges of codes together know of it.
  void find_best(const RowSums* known = nullptr);
  // Calls visit(span) with the span's bits, or products, in memory; over all codes, or some from a whole block on.
  template <class Visit>
  void for_spans(const Visit& visit, int64_t begin = 0, int64_t end = -1) {
    if (end < 0) end = codes.num_codes;
    for (int64_t first = begin; first < end; first += span_codes_) {
      const Span span{first, int32_t(end - first < span_codes_ ? end - first : span_codes_)};
      prepare(span);
      visit(span);
    }
  }

  int64_t blocks(const Span& span) const { return (span.count + passes.block - 1) / passes.block; }
  // Codes of the longest span, rounded up to whole blocks.
  int64_t columns() const { return columns_; }

  // Column sums of a span and what they become; the arrays lie in `slope` and `top`.
  void take_columns(Weights weights);
  void columns_of(const Span& span, Weights weights, const float* q, double* prior);
  float *slope = nullptr, *top = nullptr;

  // Sums of weighted codes over all spans.
  void take_sums(bool of_codes);
  void add_weighted(const Span& span, WeightedKernel kernel, WeightedCodesArguments arguments);
  void add_given(const Span& span, const float* p, const float* v, int64_t stride, const double* centre);
  void finish_rows(double beta);
  // One array per view.
  void finish_sums(Result result, double beta, double scale, float* out_1, float* out_2);
  // Of a range of codes: the sums themselves, see `collect_sums`.
  void finish_range(double beta, const RowScalars& scalars, double* prior_sum, double* sums_of_codes);

  Call& call;
  const Codes codes;
  const Places places;
  const Batch batch;
  const int32_t total;
  const Passes& passes;
  RowState state;
  TileData tile{};
  double *prior = nullptr, *cross_term = nullptr, *best_weight = nullptr;
  float* best_partner = nullptr;

 private:
  void prepare(const Span& span);
  // Rows as the tiles want them, times `factor`: independent codes, Hadamard.
  Halves take_halves(const Batch& from, double factor);
  float* take_rows(const Batch& from, double factor);
  // The sums of codes with the weights that lie in memory, rows first … first + rows - 1 of them.
  void add_stored(const Span& span, int64_t first, int64_t rows);
  void multiply(const Halves& rows, const Span& span, float* products);
  FinishRows parts_of_rows(double beta) const;
  FinishSums parts_of_sums() const;

  int64_t width_;       // of a prepared row
  int64_t sum_rows_;    // of one kind of sums: total, for sign_gemm rounded up to its tiles
  int64_t span_codes_, columns_;
  int64_t prepared_ = -1;  // first code of the span that is in memory
  Cut column_cut_{1, 1};  // of the rows
  float *column_sums_ = nullptr, *column_top_ = nullptr;
  // Hadamard
  float *rows_ = nullptr, *second_rows_ = nullptr;
  uint32_t* signs_ = nullptr;
  // Independent codes
  Halves halves_{}, second_halves_{};
  uint32_t *bits_ = nullptr, *transposed_ = nullptr;
  float *products_ = nullptr, *second_products_ = nullptr;
  // Sums
  Cut sums_cut_{1, 1};
  int product_splits_ = 1;
  double *sums_ = nullptr, *mass_ = nullptr, *weight_ = nullptr, *cross_term_ = nullptr;
  BestShare* shares_ = nullptr;
};

// The passes that serve a dictionary; throws std::invalid_argument for one that no pass serves.
const Passes& passes_for(const Codes& codes);

}  // namespace cplearn::cuda
