"""Tensors as kernels take them: in float32, contiguous, by their address."""

from __future__ import annotations

import torch


def as_float32(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's values in float32, contiguous, without autograd."""
    return tensor.detach().to(torch.float32).contiguous()


def prior_as_float32(prior_probs: torch.Tensor | None) -> torch.Tensor | None:
    """A prior as kernels read it; None is the uniform one."""
    return None if prior_probs is None else as_float32(prior_probs)


def address(tensor: torch.Tensor | None) -> int:
    """Where a tensor lies; 0 for none and for an empty one."""
    return 0 if tensor is None or tensor.numel() == 0 else tensor.data_ptr()


def addresses(*tensors: torch.Tensor | None) -> tuple[int, ...]:
    """`address` of each."""
    return tuple(map(address, tensors))
