"""Backend "cuda": the CUDA C++ kernels of csrc/cuda."""
