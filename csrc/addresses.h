// What Python hands to the compiled core instead of tensors: addresses, checked by the caller, which keeps the memory.
#pragma once

#include <cstdint>

#include "codes.h"

namespace cplearn {

using Address = uintptr_t;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

inline Codes codes_at(int kind, int64_t num_features, int64_t num_codes, uint64_t seed, int log2_block,
                      Address positions, Address packed, int64_t first_code, int64_t total_codes) {
  return {CodeKind(kind), num_features, num_codes, seed, log2_block, at<const int32_t>(positions),
          at<const uint32_t>(packed), first_code, total_codes};
}

}  // namespace cplearn
