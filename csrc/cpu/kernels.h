// The plain interface of the CPU kernels: pointers and sizes in, a table of functions per instruction set out.
#pragma once

#include <cstdint>

namespace cplearn {

// A Hadamard dictionary. `positions[k]` is the place of coordinate k in a block of 2^log2_block codes.
struct HadamardCodes {
  int64_t num_features;
  int64_t num_codes;
  uint64_t seed;
  int log2_block;
  const int32_t* positions;
};

// Embeddings: `rows` contiguous rows of codes.num_features floats.
struct Batch {
  const float* data;
  int64_t rows;
};

enum class Prior : int { kReverseKL = 0, kCrossEntropy = 1 };

struct LossRequest {
  double temperature;
  double beta;
  Prior prior;
  const float* prior_probs;  // (num_codes), or null for the uniform prior
  bool need_grad;
};

struct LossResult {
  double invariance;
  double prior;
  float* grad[2];  // (rows, num_features) each; unused unless need_grad
};

// What one instruction set provides. Every function computes the formula of the function of the same name in
// reference.py, for finite inputs; `threads` changes the time and nothing else, not even the last bit.
struct Kernels {
  const char* name;
  int lanes;
  void (*cplearn_loss)(const HadamardCodes&, const Batch (&views)[2], const LossRequest&, int threads, LossResult&);
  void (*projector_logsumexp)(const HadamardCodes&, const Batch&, double temperature, int threads, float* out);
  void (*mean_assignment)(const HadamardCodes&, const Batch&, double temperature, int threads, float* out);
  // total_i = sum_j p_ij w_j; with code_weights v (num_codes) also weighted_i = sum_j p_ij v_j w_j and
  // mean_weight_i = sum_j p_ij v_j. The backward passes of projector_logsumexp and mean_assignment.
  void (*weighted_codes)(const HadamardCodes&, const Batch&, double temperature, const float* code_weights,
                         int threads, float* total, float* weighted, float* mean_weight);
  void (*assign)(const HadamardCodes&, const Batch&, int64_t top_k, int threads, float* scores, int64_t* found);
};

}  // namespace cplearn
