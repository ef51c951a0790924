"""Backend "cpu": the C++ kernels of csrc/cpu."""
