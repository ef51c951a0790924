// assign: each row's best codes by a running top-k (reference.assign).
#pragma once

#include <cmath>
#include <cstdint>

#include "../kernels.h"
#include "../layout.h"
#include "../vector.h"
#include "../workers.h"
#include "pass.h"

namespace cplearn::CPK_TARGET {

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

template <class Blocks>
static void assign(const Blocks& dictionary, const Batch& batch, int64_t top_k, const Run& run, float* scores,
                   int64_t* found) {
  const Tiles rows(dictionary, &batch, 1, 1.0, run.threads);
  const Schedule plan(dictionary, rows.count);
  const int64_t all = plan.items() * kLanes, block_floats = plan.block * kLanes;
  Buffer<float> item_scores(all * top_k), scratch(block_floats * run.threads);
  Buffer<int64_t> item_found(all * top_k);
  Buffer<TopList> lists(all);
  for (int64_t i = 0; i < all; ++i) lists[i] = {item_scores + i * top_k, item_found + i * top_k, top_k, 0};

  visit_items(dictionary, plan, run, false,
              [&](int64_t worker, int64_t item, int64_t t, int64_t b, const uint32_t* signs) {
    TopList* mine = lists + item * kLanes;
    OfferScores sink{mine, broadcast(0.0f), b * plan.block, plan.codes_in(b)};
    for (int lane = 0; lane < kLanes; ++lane) sink.threshold[lane] = mine[lane].threshold();
    dictionary.logits(rows.tile(t), signs, sink, scratch + worker * block_floats);
  });

  for (int64_t row = 0; row < batch.rows; ++row) {
    TopList best{scores + row * top_k, found + row * top_k, top_k, 0};
    for (int64_t s = 0; s < plan.splits; ++s) {
      const TopList& part = lists[s * plan.tiles * kLanes + row];
      for (int64_t i = 0; i < part.filled; ++i) best.offer(part.scores[i], part.found[i]);
    }
  }
}

}  // namespace cplearn::CPK_TARGET
