"""Benchmarks of cplearn-kernels; run them from the checkout with `pytest bench/ --benchmark`."""
