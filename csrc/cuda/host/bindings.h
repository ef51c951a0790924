// The Python face of functions.h.
#pragma once

#include <pybind11/pybind11.h>

namespace cplearn::cuda {

// Adds the functions to a module. `Device` and `Dictionary` are classes of it; a function called with memory 0 returns
// the bytes that it needs, and does nothing else.
void bind(pybind11::module_& m);

}  // namespace cplearn::cuda
