"""Backend "triton": kernels that Triton compiles where they run."""
