// The Python module of the emulated kernels: what cplearn_kernels._core.cuda is on a GPU, on CPU tensors.
#include "emulation.h"

#include <pybind11/stl.h>

#include "cuda/call.h"
#include "cuda/host/bindings.h"
#include "cuda/host/runtime.h"

namespace cplearn::cuda {

std::string architectures() { return "the host, in emulation"; }
int device_count(std::string&) { return 1; }
void use_device(int) {}

}  // namespace cplearn::cuda

PYBIND11_MODULE(_cuda_emulated, m) {
  m.doc() = "The CUDA kernels under the thread model of tests/kernels/cuda/emulation.";
  cplearn::cuda::bind(m);
  m.def("set_order", &cplearn::emulation::set_order, "0: threads take turns ascending; 1: descending; else a seed");
  m.def("gaps", [] { return cplearn::cuda::Call::gaps(); },
        "(begin, end) of what lies between the arrays of the latest call's memory");
}
