// The functions of one batch: projector_logsumexp, mean_assignment, weighted_codes (their backward passes) and assign.
//
// No inclusion guard: see vector.h.

static void projector_logsumexp(const HadamardCodes& codes, const Batch& batch, double temperature, int threads,
                                float* out) {
  const Tiles rows(codes, &batch, 1, kLog2E / temperature, threads);
  const RowSums sums(rows.count * kLanes);
  row_pass(codes, rows, threads, sums);
  for (int64_t i = 0; i < batch.rows; ++i) out[i] = float(kLn2 * double(sums.best[i]) + log1p(sums.others[i]));
}

// Sink of walsh_hadamard: probabilities of one tile, stored or added to a column.
template <bool kAdd>
struct Probabilities {
  Vec best, inverse_sum;
  float* p;
  int64_t limit;  // codes of this block that exist; the others get 0

  template <int R>
  CPK_INLINE void operator()(int64_t r, Vec (&x)[R]) {
#pragma GCC unroll 16
    for (int q = 0; q < R; ++q) {
      float* to = p + (r + q) * kLanes;
      const Vec value = r + q < limit ? exp2_nonpositive(x[q] - best) * inverse_sum : broadcast(0.0f);
      store(to, kAdd ? load(to) + value : value);
    }
  }
};

static void mean_assignment(const HadamardCodes& codes, const Batch& batch, double temperature, int threads,
                            float* out) {
  const Tiles rows(codes, &batch, 1, kLog2E / temperature, threads);
  const RowSums sums(rows.count * kLanes);
  row_pass(codes, rows, threads, sums);
  const Schedule plan(codes, rows.count);
  const int64_t tile_floats = plan.tile_floats();
  Buffer<float> column(tile_floats * threads), scratch(tile_floats * threads);
  Buffer<int32_t> masks(plan.block * threads);
  masks.fill(0);
  // Every code belongs to one worker, which sees all rows of it.
  in_parallel(threads, [&](int64_t worker, int64_t workers) {
    float* my_column = column + worker * tile_floats;
    int32_t* mask = masks + worker * plan.block;
    const Share mine(plan.blocks, worker, workers);
    for (int64_t b = mine.begin; b < mine.end; ++b) {
      make_sign_masks(codes, b, mask);
      memset(my_column, 0, sizeof(float) * size_t(tile_floats));
      for (int64_t t = 0; t < rows.count; ++t) {
        SignedTile source{rows.tile(t), mask};
        Probabilities<true> sink{load(sums.best + t * kLanes), load(sums.inverse_sum + t * kLanes), my_column,
                                 plan.codes_in(b)};
        walsh_hadamard(plan.log2_block, source, sink, scratch + worker * tile_floats);
      }
      for (int64_t j = 0; j < plan.codes_in(b); ++j) {
        out[b * plan.block + j] = sum_lanes(load(my_column + j * kLanes)) / float(batch.rows);
      }
    }
  });
}

// Source of walsh_hadamard: p_j v_j, summing it on the way.
struct WeightedProbabilities {
  const float* p;
  const float* weights;  // v of this block's codes
  int64_t limit;
  LeveledSum sum;
  CPK_INLINE Vec operator()(int64_t k) {
    const Vec weighted = load(p + k * kLanes) * broadcast(k < limit ? weights[k] : 0.0f);
    sum.add(weighted);
    return weighted;
  }
  CPK_INLINE void group_done(int64_t i) { sum.group_done(i); }
};

static void weighted_codes(const HadamardCodes& codes, const Batch& batch, double temperature,
                           const float* code_weights, int threads, float* total, float* weighted,
                           float* mean_weight) {
  const Tiles rows(codes, &batch, 1, kLog2E / temperature, threads);
  const RowSums sums(rows.count * kLanes);
  row_pass(codes, rows, threads, sums);
  const Schedule plan(codes, rows.count);
  const int64_t tile_floats = plan.tile_floats(), all = plan.items() * tile_floats;
  const bool has_weights = code_weights != nullptr;
  Buffer<float> p(tile_floats * threads), scratch(tile_floats * threads);
  // Outputs of a transform go through `recent`, a float32 block, into double precision.
  Buffer<float> recent(tile_floats * threads);
  Buffer<double> sum_total(all), sum_weighted(has_weights ? all : 0), sum_weight(plan.items() * kLanes);
  sum_total.fill(0.0), sum_weighted.fill(0.0), sum_weight.fill(0.0);

  visit_items(codes, plan, threads, [&](int64_t worker, int64_t item, int64_t t, int64_t b, const int32_t* mask) {
    float* my_p = p + worker * tile_floats;
    float* my_recent = recent + worker * tile_floats;
    SignedTile source{rows.tile(t), mask};
    Probabilities<false> sink{load(sums.best + t * kLanes), load(sums.inverse_sum + t * kLanes), my_p,
                              plan.codes_in(b)};
    walsh_hadamard(plan.log2_block, source, sink, scratch + worker * tile_floats);
    const auto add_transform = [&](auto& from, const Buffer<double>& into) {
      memset(my_recent, 0, sizeof(float) * size_t(tile_floats));
      AddSigned to{my_recent, mask};
      walsh_hadamard(plan.log2_block, from, to, scratch + worker * tile_floats);
      double* sum = into + item * tile_floats;
      for (int64_t i = 0; i < tile_floats; ++i) sum[i] += my_recent[i];
    };
    PlainTile plain{my_p};
    add_transform(plain, sum_total);
    if (has_weights) {
      WeightedProbabilities weights{my_p, code_weights + b * plan.block, plan.codes_in(b)};
      add_transform(weights, sum_weighted);
      const Vec sum = weights.sum.total();
      for (int lane = 0; lane < kLanes; ++lane) sum_weight[item * kLanes + lane] += sum[lane];
    }
  });

  const auto over_slabs = [&](const Buffer<double>& sums_, int64_t tile, int64_t size, int64_t i) {
    double value = 0;
    for (int64_t s = 0; s < plan.slabs; ++s) value += sums_[(s * plan.tiles + tile) * size + i];
    return value;
  };
  for (int64_t row = 0; row < batch.rows; ++row) {
    const int64_t tile = row / kLanes, lane = row % kLanes;
    for (int64_t k = 0; k < codes.num_features; ++k) {
      const int64_t i = codes.positions[k] * kLanes + lane;
      total[row * codes.num_features + k] = float(over_slabs(sum_total, tile, tile_floats, i));
      if (has_weights) weighted[row * codes.num_features + k] = float(over_slabs(sum_weighted, tile, tile_floats, i));
    }
    if (has_weights) mean_weight[row] = float(over_slabs(sum_weight, tile, kLanes, lane));
  }
}

// The best codes of one row found so far: descending scores, equal scores by ascending code.
struct TopList {
  float* scores;
  int64_t* found;
  int64_t size;
  int64_t filled;

  float threshold() const { return filled < size ? -INFINITY : scores[size - 1]; }

  // Codes must come in ascending order; then a strict comparison keeps the earlier of two equals ahead.
  void offer(float score, int64_t code) {
    if (filled == size && !(score > scores[size - 1])) return;
    int64_t i = filled < size ? filled++ : size - 1;
    for (; i > 0 && score > scores[i - 1]; --i) scores[i] = scores[i - 1], found[i] = found[i - 1];
    scores[i] = score, found[i] = code;
  }
};

// Sink of walsh_hadamard: offers what exceeds a lane's threshold. Rarely anything does.
struct OfferScores {
  TopList* lists;
  Vec threshold;
  int64_t first_code, limit;

  template <int R>
  CPK_INLINE void operator()(int64_t r, Vec (&x)[R]) {
    Vec largest = x[0];
#pragma GCC unroll 16
    for (int q = 1; q < R; ++q) largest = vmax(largest, x[q]);
    if (__builtin_expect(any_greater(largest, threshold), 0)) offer<R>(r, x);
  }

 private:
  template <int R>
  __attribute__((noinline)) void offer(int64_t r, Vec (&x)[R]) {
    for (int q = 0; q < R && r + q < limit; ++q) {
      for (int lane = 0; lane < kLanes; ++lane) lists[lane].offer(x[q][lane], first_code + r + q);
    }
    for (int lane = 0; lane < kLanes; ++lane) threshold[lane] = lists[lane].threshold();
  }
};

static void assign(const HadamardCodes& codes, const Batch& batch, int64_t top_k, int threads, float* scores,
                   int64_t* found) {
  const Tiles rows(codes, &batch, 1, 1.0, threads);
  const Schedule plan(codes, rows.count);
  const int64_t all = plan.items() * kLanes;
  Buffer<float> item_scores(all * top_k), scratch(plan.tile_floats() * threads);
  Buffer<int64_t> item_found(all * top_k);
  Buffer<TopList> lists(all);
  for (int64_t i = 0; i < all; ++i) lists[i] = {item_scores + i * top_k, item_found + i * top_k, top_k, 0};

  visit_items(codes, plan, threads, [&](int64_t worker, int64_t item, int64_t t, int64_t b, const int32_t* mask) {
    TopList* mine = lists + item * kLanes;
    OfferScores sink{mine, broadcast(0.0f), b * plan.block, plan.codes_in(b)};
    for (int lane = 0; lane < kLanes; ++lane) sink.threshold[lane] = mine[lane].threshold();
    SignedTile source{rows.tile(t), mask};
    walsh_hadamard(plan.log2_block, source, sink, scratch + worker * plan.tile_floats());
  });

  for (int64_t row = 0; row < batch.rows; ++row) {
    TopList best{scores + row * top_k, found + row * top_k, top_k, 0};
    for (int64_t s = 0; s < plan.slabs; ++s) {
      const TopList& part = lists[s * plan.tiles * kLanes + row];
      for (int64_t i = 0; i < part.filled; ++i) best.offer(part.scores[i], part.found[i]);
    }
  }
}
