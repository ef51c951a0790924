// Runs two passes of the kernels on made-up rows: built by test_cuda_emulation.py with a barrier of theirs removed, to
// see that the detector would notice. CPK_LOG2_BLOCK says which table is linked. Prints "ok" or the error.
#include <cstdio>
#include <stdexcept>
#include <vector>

#include "cuda/passes.h"

#define CPK_JOIN_NOW(a, b) a##b
#define CPK_JOIN(a, b) CPK_JOIN_NOW(a, b)

namespace cplearn::cuda {
const Passes& CPK_JOIN(passes_, CPK_LOG2_BLOCK)();
}

int main() {
  using namespace cplearn::cuda;
  const Passes& passes = CPK_JOIN(passes_, CPK_LOG2_BLOCK)();
  const int rows = 2, blocks = 3, codes = blocks * passes.block;
  std::vector<float> data(rows * passes.block), slope(codes, 0.5f);
  for (size_t i = 0; i < data.size(); ++i) data[i] = float(int(i * 7919 % 101) - 50) / 500;
  std::vector<uint32_t> signs(size_t(codes / 32), 0x5a17c3e9u);
  std::vector<float> best(rows, 1e3f), inverse_sum(rows, 1.0f), shift(rows, 0.0f), partner(rows);
  std::vector<double> others(rows), sums(2 * rows * passes.block), scalars(3 * 8 * rows), best_weight(rows);
  std::vector<int32_t> code(rows, -1);
  char memory[1];
  Call call({0, nullptr, 1, 1 << 20, 0, 0}, memory);
  WeightedCodesArguments a{};
  a.tile.rows = data.data(), a.tile.signs = signs.data();
  a.span = {0, codes}, a.total = rows, a.per_view = 1, a.blocks_per_split = blocks, a.weights = Weights::kReverseKL;
  a.rows = {best.data(), inverse_sum.data(), shift.data(), others.data(), code.data()};
  a.column_stride = 0, a.slope = slope.data(), a.sums = sums.data();
  a.mass = scalars.data(), a.weight = a.mass + 8 * rows, a.cross_term = a.weight + 8 * rows;
  a.best_weight = best_weight.data(), a.best_partner = partner.data();
  try {
    passes.weighted_codes(call, a, WeightedKernel::kGradient, 1);
    std::puts("ok");
  } catch (const std::runtime_error& error) {
    std::puts(error.what());
  }
}
