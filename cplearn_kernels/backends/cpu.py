"""Backend "cpu": C++ kernels for Hadamard dictionaries on CPU tensors (placeholder until the core is built)."""
import torch
NAME = "cpu"
DICTIONARIES = ("hadamard",)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
FUNCTIONS = ("cplearn_loss", "projector_logsumexp", "mean_assignment", "assign")
def unavailable():
    return "the compiled core is not there yet"
def unsupported_device(device):
    return None if device.type == "cpu" else f"it serves CPU tensors, got one on {device}"
