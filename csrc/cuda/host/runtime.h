// What the CUDA runtime is asked about devices.
#pragma once

#include <string>

namespace cplearn::cuda {

// Architectures that machine code was built for, as CMake names them.
std::string architectures();
// The number of devices; if there is none, `reason` says why in the runtime's words.
int device_count(std::string& reason);
// Makes a device current for the calling thread. Throws std::runtime_error.
void use_device(int index);

}  // namespace cplearn::cuda
