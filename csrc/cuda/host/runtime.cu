// Devices, by the CUDA runtime that is linked in.
#include "runtime.h"

#include "../launch.cuh"

namespace cplearn::cuda {

std::string architectures() { return CPK_CUDA_ARCHITECTURES; }

int device_count(std::string& reason) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess && count > 0) return count;
  reason = error == cudaSuccess ? "no device" : cudaGetErrorString(error);
  cudaGetLastError();  // what was asked here concerns no later call
  return 0;
}

void use_device(int index) { check("use_device", cudaSetDevice(index)); }

}  // namespace cplearn::cuda
