// Which instruction sets this build holds and this processor runs.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace cplearn {

// The kernels that can run here, fastest first. Never empty.
const std::vector<const Kernels*>& runnable_kernels();

// The kernels of that name; throws std::invalid_argument when they are not built or cannot run here.
const Kernels& kernels_named(const std::string& name);

}  // namespace cplearn
