// The tables of passes.h by block size; passes.cu makes one function for each.
#include <array>
#include <stdexcept>

#include "../passes.h"

namespace cplearn::cuda {

const Passes& passes_0();
const Passes& passes_6();
const Passes& passes_7();
const Passes& passes_8();
const Passes& passes_9();
const Passes& passes_10();
const Passes& passes_11();
const Passes& passes_12();
const Passes& passes_13();

const Passes& hadamard_passes(int log2_block) {
  constexpr std::array tables{passes_6, passes_7, passes_8, passes_9, passes_10, passes_11, passes_12, passes_13};
  if (log2_block < 6 || log2_block > 13) throw std::invalid_argument("no passes for Hadamard blocks of this size");
  return tables[size_t(log2_block - 6)]();
}

const Passes& stored_passes() { return passes_0(); }

}  // namespace cplearn::cuda
