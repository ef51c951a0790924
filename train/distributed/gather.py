"""The embeddings of all processes in each of them, for losses that need the whole batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function


def gather_rows(h: Tensor) -> Tensor:
    """The rows (n, f) of every process one after another, (processes * n, f); `h` itself where there is no group.

    The loss that follows must be the same in every process. The backward then needs no message: each process has the
    gradient of that loss for all rows, and hands out its own rows' times the number of processes, because
    DistributedDataParallel averages the parameters' gradients where one process would add them.
    """
    return _Gather.apply(h) if dist.is_initialized() else h


def average(gradient: Tensor) -> Tensor:
    """The mean of a gradient over all processes.

    For a parameter outside DistributedDataParallel whose gradient all processes compute from all rows: alike but for
    roundings, which would let the parameter drift apart.
    """
    if not dist.is_initialized():
        return gradient
    mean = gradient / dist.get_world_size()
    dist.all_reduce(mean)
    return mean


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        parts = [torch.empty_like(h, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, h.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.chunk(dist.get_world_size())[dist.get_rank()] * dist.get_world_size()
