"""The Triton kernels: device code alone; what launches them is in the folder above."""
