// What every compiled backend is told of a dictionary and of a loss: plain sizes and addresses.
#pragma once

#include <cstdint>

// Functions that CPU and GPU share. Static, so that the linker never picks one that was compiled for an instruction set
// which this processor does not have.
#if defined(__CUDACC__)
#define CPK_SHARED_FUNCTION static __host__ __device__ __forceinline__
#else
#define CPK_SHARED_FUNCTION static inline __attribute__((unused))
#endif

namespace cplearn {

CPK_SHARED_FUNCTION int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

enum class CodeKind : int { kHadamard = 0, kRademacher = 1, kPacked = 2 };

// A dictionary of ±1 codes, or the range of one that a rank works on: its codes are numbered from 0 here.
struct Codes {
  CodeKind kind;
  int64_t num_features;
  int64_t num_codes;
  uint64_t seed;              // Hadamard, Rademacher
  int log2_block;             // Hadamard: a block holds 2^log2_block codes
  const int32_t* positions;   // Hadamard: positions[k] is the place of coordinate k in a block
  const uint32_t* packed;     // packed: (num_codes, words_of_code) words; bit k % 32 of word k / 32, 1 is -1
  int64_t first_code = 0;     // generated codes are those from here on; a multiple of the block
  int64_t total_codes = num_codes;  // of the whole dictionary
};

CPK_SHARED_FUNCTION int64_t words_of_code(const Codes& codes) { return ceil_div(codes.num_features, 32); }

enum class Prior : int { kReverseKL = 0, kCrossEntropy = 1 };

constexpr double kLog2E = 1.44269504088896340736, kLn2 = 0.693147180559945309417;

}  // namespace cplearn
