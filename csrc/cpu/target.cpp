// The CPU kernels for one instruction set. The build compiles this file once per set, with its own flags, CPK_TARGET (a
// name) and CPK_LANES; everything it includes lands in a namespace of that name. No templates of the standard library:
// the linker keeps one copy of each, perhaps that of an instruction set which this processor does not have.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <ctime>

#include <sched.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(CPK_STD_THREADS)
#include <thread>
#include <vector>
#elif defined(_OPENMP)
#include <omp.h>
#endif

#include "../formulas.h"
#include "../philox.h"
#include "kernels.h"
#include "workspace.h"

namespace cplearn {
namespace CPK_TARGET {

#include "vector.h"
#include "walsh_hadamard.h"
#include "workers.h"
#include "layout.h"
#include "hadamard_blocks.h"
#include "sign_blocks.h"
#include "row_pass.h"
#include "loss_streams.h"
#include "loss_columns.h"
#include "loss_gradients.h"
#include "loss_pass.h"
#include "row_functions.h"
#include "shard.h"
#include "softmax.h"
#include "assign.h"

// Converts to a plain function of the table, of whatever arguments the table names, that picks the kind of dictionary.
#define CPK_FOR_BOTH_KINDS(function)                                                         \
  struct AnyKind_##function {                                                                \
    template <class... Arguments>                                                            \
    using Pointer = void (*)(const Codes&, Arguments...);                                    \
    template <class... Arguments>                                                            \
    constexpr operator Pointer<Arguments...>() const {                                       \
      return [](const Codes& codes, Arguments... arguments) {                                \
        if (codes.kind == CodeKind::kHadamard) function(HadamardBlocks(codes), arguments...); \
        else function(SignBlocks(codes), arguments...);                                      \
      };                                                                                     \
    }                                                                                        \
  };

CPK_FOR_BOTH_KINDS(cplearn_loss)
CPK_FOR_BOTH_KINDS(projector_logsumexp)
CPK_FOR_BOTH_KINDS(projector_softmax)
CPK_FOR_BOTH_KINDS(projector_softmax_backward)
CPK_FOR_BOTH_KINDS(expected_code)
CPK_FOR_BOTH_KINDS(expected_code_backward)
CPK_FOR_BOTH_KINDS(mean_assignment)
CPK_FOR_BOTH_KINDS(mean_assignment_backward)
CPK_FOR_BOTH_KINDS(assign)
CPK_FOR_BOTH_KINDS(shard_size)
CPK_FOR_BOTH_KINDS(row_sums)
CPK_FOR_BOTH_KINDS(shard_mean_assignment)
CPK_FOR_BOTH_KINDS(shard_sums)
CPK_FOR_BOTH_KINDS(shard_gradients)

#define CPK_STRING_(x) #x
#define CPK_STRING(x) CPK_STRING_(x)

extern const Kernels kernels;
constexpr Kernels kernels = {  // constant: nothing of this file may run before the processor is known
    CPK_STRING(CPK_TARGET),
    kLanes,
    AnyKind_cplearn_loss(),
    AnyKind_projector_logsumexp(),
    AnyKind_projector_softmax(),
    AnyKind_projector_softmax_backward(),
    AnyKind_expected_code(),
    AnyKind_expected_code_backward(),
    AnyKind_mean_assignment(),
    AnyKind_mean_assignment_backward(),
    AnyKind_assign(),
    AnyKind_shard_size(),
    AnyKind_row_sums(),
    AnyKind_shard_mean_assignment(),
    AnyKind_shard_sums(),
    AnyKind_shard_gradients(),
};

}  // namespace CPK_TARGET
}  // namespace cplearn
