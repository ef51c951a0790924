// Chooses among the instruction sets at run time; see dispatch.h.
#include "dispatch.h"

#include <stdexcept>

namespace cplearn {

#if defined(CPK_HAS_AVX512)
namespace avx512 { extern const Kernels kernels; }
#endif
#if defined(CPK_HAS_AVX2)
namespace avx2 { extern const Kernels kernels; }
#endif
namespace baseline { extern const Kernels kernels; }

const std::vector<const Kernels*>& runnable_kernels() {
  static const std::vector<const Kernels*> found = [] {
    std::vector<const Kernels*> list;
#if defined(CPK_HAS_AVX512)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq")) {
      list.push_back(&avx512::kernels);
    }
#endif
#if defined(CPK_HAS_AVX2)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) list.push_back(&avx2::kernels);
#endif
    list.push_back(&baseline::kernels);
    return list;
  }();
  return found;
}

const Kernels& kernels_named(const std::string& name) {
  std::string names;
  for (const Kernels* kernels : runnable_kernels()) {
    if (name == kernels->name) return *kernels;
    names += (names.empty() ? "" : ", ") + std::string(kernels->name);
  }
  throw std::invalid_argument("instruction set '" + name + "' cannot run here; these can: " + names);
}

}  // namespace cplearn
