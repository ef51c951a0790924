// What the transforms of the loss's second pass read and write: probabilities, weights.
#pragma once

#include <cstdint>

#include "../../formulas.h"
#include "../vector.h"

namespace cplearn::CPK_TARGET {

// Sink of walsh_hadamard: probabilities p and u = log2(c p) of one tile. Of log p itself, about -log c everywhere while
// p is near uniform, float32 would keep too few digits.
struct StoreProbabilities {
  Vec best, inverse_sum, log2_mean;
  float* p;
  float* u;
  int64_t limit;  // codes of this block that exist; the others get p = u = 0

  template <int R>
  CPK_INLINE void operator()(int64_t r, Vec (&x)[R]) {
#pragma GCC unroll 16
    for (int q = 0; q < R; ++q) {
      const bool exists = r + q < limit;
      const Vec lead = x[q] - best;
      store(u + (r + q) * kLanes, exists ? lead - log2_mean : broadcast(0.0f));
      store(p + (r + q) * kLanes, exists ? exp2_nonpositive(lead) * inverse_sum : broadcast(0.0f));
    }
  }
};

// Source of walsh_hadamard: the weights `p_ij g_j - beta p_ij u'_ij` of E, u' the partner's; the sum of p u' (t) on the
// way. Under cross entropy the first product is
// `exp2(u - column maximum) * g_j`, with g_j scaled to match. A row's best code, which carries p = -0, weighs nothing.
template <Prior kPrior>
struct GradientWeights {
  const float* p;
  const float* u;
  const float* partner_u;
  const float* g;
  const float* column_max;
  Vec beta_ln2;
  LeveledSum cross_term = {};

  CPK_INLINE Vec operator()(int64_t k) {
    const Vec pk = load(p + k * kLanes);
    Vec share = pk;
    if (kPrior == Prior::kCrossEntropy) {
      share = exp2_nonpositive(load(u + k * kLanes) - broadcast(column_max[k]));
      share = as_float(as_int(share) & ~(as_int(pk) >> 31));
    }
    const Vec cross = rounded(pk * load(partner_u + k * kLanes));
    const Vec weight = pull_weight(share * broadcast(g[k]), beta_ln2, cross);
    cross_term.add(cross);
    return weight;
  }
  CPK_INLINE void group_done(int64_t i) { cross_term.group_done(i); }
};

}  // namespace cplearn::CPK_TARGET
