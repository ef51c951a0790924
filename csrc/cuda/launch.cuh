// Launching a kernel, with every error turned into an exception that names the kernel.
#pragma once

#include <stdexcept>
#include <string>

#include "../codes.h"
#include "call.h"
#ifdef CPK_EMULATE
#include "emulation.h"
#endif

namespace cplearn::cuda {

#ifdef CPK_EMULATE

template <class Arguments>
void launch(const char* name, void (*kernel)(Arguments), dim3 grid, int threads, int shared_bytes, const Call& call,
            const Arguments& arguments) {
  if (call.counting() || grid.x * grid.y * grid.z == 0) return;
  if (shared_bytes > call.device.shared_limit) throw std::runtime_error(std::string(name) + ": too much shared memory");
  emulation::run({name, grid, {unsigned(threads)}, shared_bytes}, [&] { kernel(arguments); });
}

inline void launch_zeros(const char*, void* p, size_t bytes, const Call& call) {
  if (!call.counting()) std::memset(p, 0, bytes);
}

#else

inline void check(const char* name, cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(name) + ": " + cudaGetErrorString(error));
}

template <class Arguments>
void launch(const char* name, void (*kernel)(Arguments), dim3 grid, int threads, int shared_bytes, const Call& call,
            const Arguments& arguments) {
  if (call.counting() || grid.x * grid.y * grid.z == 0) return;
  if (shared_bytes > 48 * 1024) {
    check(name, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  }
  kernel<<<grid, threads, shared_bytes, static_cast<cudaStream_t>(call.device.stream)>>>(arguments);
  check(name, cudaGetLastError());
}

inline void launch_zeros(const char* name, void* p, size_t bytes, const Call& call) {
  if (call.counting() || bytes == 0) return;
  check(name, cudaMemsetAsync(p, 0, bytes, static_cast<cudaStream_t>(call.device.stream)));
}

#endif

// A grid with a thread for each item.
inline dim3 blocks_for(int64_t items, int threads) { return {unsigned(ceil_div(items, threads))}; }

}  // namespace cplearn::cuda
