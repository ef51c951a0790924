// Working memory and launches of one call, see problem.h.
#include "problem.h"

#include <algorithm>
#include <stdexcept>

namespace cplearn::cuda {
namespace {

int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

constexpr int64_t kMostWaves = 4;  // rounds of thread blocks; more parts than that only take memory
constexpr int kMostGroups = 32;  // 128 codes each, that sign_gemm adds up in float32

}  // namespace

const Passes& passes_for(const Codes& codes) {
  if (codes.kind == CodeKind::kHadamard && codes.log2_block >= 6) {
    if (codes.log2_block > 13) throw std::invalid_argument("Hadamard blocks of at most 8192 codes");
    return hadamard_passes(codes.log2_block);
  }
  return stored_passes();
}

Problem::Problem(Call& call_, const Codes& codes_, const Places& places_, const Batch& batch_, double factor)
    : call(call_),
      codes(codes_),
      places(places_),
      batch(batch_),
      total(Batch::rows_of(batch_)),
      passes(passes_for(codes_)) {
  state = {call.take<float>(total), call.take<float>(total), call.take<float>(total), call.take<double>(total),
           call.take<int32_t>(total)};
  int64_t most = call.device.span_codes;
  if (passes.in_memory) most = std::min(most, call.device.span_products / total);
  most = std::max<int64_t>(most / passes.block, 1) * passes.block;
  span_codes_ = std::min(most, codes.num_codes);
  columns_ = round_up(span_codes_, passes.block);
  sum_rows_ = passes.in_memory ? round_up(total, 16) : total;
  if (passes.in_memory) {
    width_ = round_up(codes.num_features, 128);
    halves_ = take_halves(batch, factor);
    bits_ = call.take<uint32_t>(columns_ * (width_ / 32));
    products_ = call.take<float>(total * columns_);
    tile.rows = products_, tile.stride = columns_;
  } else {
    width_ = passes.block;
    rows_ = take_rows(batch, factor);
    signs_ = call.take<uint32_t>(columns_ / 32);
    tile.rows = rows_, tile.signs = signs_;
  }
}

Halves Problem::take_halves(const Batch& from, double factor) {
  uint32_t* const high = call.take<uint32_t>(sum_rows_ * width_ / 2);
  uint32_t* const low = call.take<uint32_t>(sum_rows_ * width_ / 2);
  float* const scales = call.take<float>(total);
  prepare_halves(call, from, factor, width_, high, low, scales);
  return {high, low, scales, total, width_, width_, 1, true};
}

float* Problem::take_rows(const Batch& from, double factor) {
  float* const rows = call.take<float>(total * width_);
  prepare_rows(call, from, factor, codes.log2_block, places.coordinate_at, rows);
  return rows;
}

void Problem::add_second(const Batch& second) {
  if (passes.in_memory) {
    second_halves_ = take_halves(second, 1.0);
    second_products_ = call.take<float>(total * columns_);
    prepared_ = -1;
  } else {
    second_rows_ = take_rows(second, 1.0);
  }
}

void Problem::prepare(const Span& span) {
  if (prepared_ == span.first) return;
  prepared_ = span.first;
  if (!passes.in_memory) {
    block_signs(call, codes, span.first / passes.block, blocks(span), places.coordinate_at, signs_);
    return;
  }
  code_bits(call, codes, span.first, blocks(span) * passes.block, width_, bits_);
  multiply(halves_, span, products_);
  if (second_products_ != nullptr) multiply(second_halves_, span, second_products_);
  if (transposed_ != nullptr) {
    transposed_bits(call, bits_, blocks(span) * passes.block, width_, codes.num_features, transposed_);
  }
}

void Problem::multiply(const Halves& rows, const Span& span, float* products) {
  sign_gemm(call, rows, {bits_, blocks(span) * passes.block}, products, columns_);
}

Cut even_cut(int64_t count, int64_t blocks_per_part, int64_t places) {
  const int64_t useful = std::max<int64_t>(1, kMostWaves * places / blocks_per_part);
  const int64_t most = std::min({count, useful, int64_t{65535}});
  Cut best{1, int(count)};
  double best_use = 0;
  for (int64_t wanted = 1; wanted <= most; ++wanted) {
    const int64_t size = ceil_div(count, wanted), parts = ceil_div(count, size);
    const int64_t waves = ceil_div(parts * blocks_per_part, places);
    // What share of the places' time is work, if every part took as long as the largest.
    const double use = double(count * blocks_per_part) / double(waves * places * size);
    if (use > 1.03 * best_use) best_use = use, best = {int(parts), int(size)};
  }
  return best;
}

void Problem::find_best(const RowSums* known) {
  if (known != nullptr) return read_row_sums(call, *known, total, codes.total_codes, state);
  const Cut cut = even_cut(columns_ / passes.block, ceil_div(total, passes.best_rows),
                           int64_t(call.device.processors) * passes.best_resident);
  const int64_t parts = int64_t(cut.parts) * passes.parts;
  float* const best = call.take<float>(parts * total);
  double* const others = call.take<double>(parts * total);
  int32_t* const code = call.take<int32_t>(parts * total);
  for_spans([&](const Span& span) {
    passes.best_codes(call, {tile, span, total, cut.size, best, others, code}, cut.parts);
    const bool last = span.first + span.count >= codes.num_codes;
    merge_best(call, best, others, code, int(parts), total, span.first == 0, last, codes.total_codes, state);
  });
}

void Problem::take_columns(Weights weights) {
  const bool logs = weights == Weights::kCrossEntropy;
  // A block of threads takes as many blocks of codes here as rows there.
  const int64_t thread_blocks = ceil_div(columns_ / passes.block, passes.best_rows) * batch.num_views;
  column_cut_ = even_cut(batch.per_view, thread_blocks, int64_t(call.device.processors) * passes.best_resident);
  column_sums_ = call.take<float>(column_cut_.parts * batch.num_views * columns_);
  slope = call.take<float>(batch.num_views * columns_);
  if (logs) {
    column_top_ = call.take<float>(column_cut_.parts * batch.num_views * columns_);
    top = call.take<float>(batch.num_views * columns_);
  }
}

void Problem::columns_of(const Span& span, Weights weights, const float* q, double* prior_parts) {
  passes.column_sums(call,
                     {tile, span, batch.per_view, column_cut_.size, state, column_sums_, column_top_},
                     batch.num_views, column_cut_.parts);
  finish_columns(call, {column_sums_, column_top_, column_cut_.parts, batch.num_views, span, columns_, weights,
                        q == nullptr ? nullptr : q + span.first, batch.per_view, codes.total_codes, slope, top,
                        prior_parts});
}

void Problem::take_sums(bool of_codes) {
  const bool in_registers = of_codes && !passes.in_memory;
  const int64_t width = passes.in_memory ? codes.num_features : width_;
  sums_cut_ = even_cut(columns_ / passes.block, ceil_div(total, passes.weighted_rows),
                       int64_t(call.device.processors) * passes.weighted_resident);
  const int64_t parts = int64_t(sums_cut_.parts) * passes.parts;
  int64_t sum_splits = in_registers ? sums_cut_.parts : 0;
  if (of_codes && passes.in_memory) {
    // sign_gemm's blocks are 64 rows by 128 columns; two fit a multiprocessor.
    const int64_t tiles = ceil_div(2 * sum_rows_, 64) * ceil_div(codes.num_features, 128), groups = columns_ / 128;
    const int64_t wanted = std::max(ceil_div(2 * call.device.processors, tiles), ceil_div(groups, kMostGroups));
    product_splits_ = int(std::min(wanted, groups));
    sum_splits = product_splits_;
    transposed_ = call.take<uint32_t>(codes.num_features * (columns_ / 32));
    prepared_ = -1;  // perhaps it was prepared without the transpose
    tile.high = call.take<uint32_t>(sum_rows_ * columns_);
    tile.low = call.take<uint32_t>(sum_rows_ * columns_);
    tile.scales = call.take<float>(2 * sum_rows_ * (columns_ / 128));
    tile.weight_rows = sum_rows_;
  }
  // What starts at zero, side by side; sums in registers are put where they belong the first time.
  const int64_t sums = sum_splits * 2 * sum_rows_ * width, begin = kPriorParts + 3 * parts * total;
  double* const zeros = call.take<double>(begin + sums);
  fill_with_zeros(call, zeros, sizeof(double) * size_t(in_registers ? begin : begin + sums));
  prior = zeros;
  mass_ = zeros + kPriorParts, weight_ = mass_ + parts * total, cross_term_ = weight_ + parts * total;
  sums_ = zeros + begin;
  cross_term = call.take<double>(total);
  best_weight = call.take<double>(total);
  best_partner = call.take<float>(total);
  shares_ = call.take<BestShare>(total);
}

void Problem::add_weighted(const Span& span, WeightedKernel kernel, WeightedCodesArguments a) {
  a.tile = tile, a.span = span, a.total = total, a.per_view = batch.per_view;
  a.second = passes.in_memory ? second_products_ : second_rows_;
  a.blocks_per_split = sums_cut_.size, a.rows = state;
  a.column_stride = columns_;
  a.sums = sums_, a.mass = mass_, a.weight = weight_, a.cross_term = cross_term_;
  a.best_weight = best_weight, a.best_partner = best_partner;
  passes.weighted_codes(call, a, kernel, sums_cut_.parts);
  if (kernel == WeightedKernel::kValue) return;
  if (a.weights == Weights::kNone) add_stored(span, sum_rows_, sum_rows_);
  else add_stored(span, 0, 2 * sum_rows_);
}

void Problem::add_given(const Span& span, const float* p, const float* v, int64_t stride, const double* centre) {
  passes.given_weights(call, {tile, span, total, sums_cut_.size, p + span.first, v + span.first, stride, centre, sums_},
                       sums_cut_.parts);
  add_stored(span, 0, total);
}

void Problem::add_stored(const Span& span, int64_t first, int64_t rows) {
  if (!passes.in_memory) return;
  const int64_t width = codes.num_features;
  const Halves weights{tile.high + first * columns_ / 2, tile.low + first * columns_ / 2,
                       tile.scales + first * (columns_ / 128), rows, blocks(span) * passes.block, columns_,
                       columns_ / 128, false};
  add_sign_gemm(call, weights, {transposed_, width}, product_splits_, sums_ + first * width, 2 * sum_rows_ * width);
}

FinishRows Problem::parts_of_rows(double beta) const {
  const bool pair = batch.num_views == 2;
  return {mass_, weight_, cross_term_, pair ? best_weight : nullptr, best_partner, state,
          sums_cut_.parts * passes.parts, total, beta, nullptr, {}};
}

void Problem::finish_rows(double beta) {
  FinishRows a = parts_of_rows(beta);
  a.shares = shares_, a.scalars.cross_term = cross_term;
  cuda::finish_rows(call, a);
}

FinishSums Problem::parts_of_sums() const {
  const int splits = passes.in_memory ? product_splits_ : sums_cut_.parts;
  const int64_t width = passes.in_memory ? codes.num_features : width_;
  return {sums_, splits, width, passes.in_memory ? nullptr : places.of_coordinate, shares_, state.code, codes,
          int32_t(sum_rows_), batch.per_view, 0, 0, {}};
}

void Problem::finish_sums(Result result, double beta, double scale, float* out_1, float* out_2) {
  FinishSums a = parts_of_sums();
  a.beta = beta, a.scale = scale, a.out[0] = out_1, a.out[1] = out_2;
  cuda::finish_sums(call, a, result);
}

void Problem::finish_range(double beta, const RowScalars& scalars, double* prior_sum, double* sums_of_codes) {
  FinishRows a = parts_of_rows(beta);
  a.scalars = scalars;
  cuda::finish_rows(call, a);
  finish_prior(call, prior, prior_sum);
  if (sums_of_codes != nullptr) collect_sums(call, parts_of_sums(), total, sums_of_codes);
}

}  // namespace cplearn::cuda
