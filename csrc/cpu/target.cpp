// The CPU kernels for one instruction set. The build compiles this file once per set, with its own flags, CPK_TARGET
// (a name) and CPK_LANES; everything it includes lands in a namespace of that name.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#include <sched.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(_OPENMP)
#include <omp.h>
#endif

#include "../philox.h"
#include "kernels.h"

namespace cplearn {
namespace CPK_TARGET {

constexpr double kLog2E = 1.44269504088896340736;

#include "vector.h"
#include "walsh_hadamard.h"
#include "workers.h"
#include "layout.h"
#include "row_pass.h"
#include "loss_streams.h"
#include "loss_pass.h"
#include "row_functions.h"

#define CPK_STRING_(x) #x
#define CPK_STRING(x) CPK_STRING_(x)

extern const Kernels kernels;
const Kernels kernels = {CPK_STRING(CPK_TARGET), kLanes, cplearn_loss, projector_logsumexp, mean_assignment,
                         weighted_codes, assign};

}  // namespace CPK_TARGET
}  // namespace cplearn
