"""Backend "torch": codes by chunks through torch's own GEMM, on any device."""
