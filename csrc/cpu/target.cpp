// The CPU kernels for one instruction set: their table. The build compiles this file once per set, with its own flags,
// CPK_TARGET (a name) and CPK_LANES; see target.h.
#include "kernels.h"

#include "codes/hadamard_blocks.h"
#include "codes/sign_blocks.h"
#include "loss/pass.h"
#include "rows/assign.h"
#include "rows/functions.h"
#include "rows/softmax.h"
#include "shard.h"
#include "target.h"

namespace cplearn::CPK_TARGET {

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

}  // namespace cplearn::CPK_TARGET
