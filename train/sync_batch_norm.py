"""Batch norm over the batches of all processes, for CPU tensors, which torch.nn.SyncBatchNorm refuses."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.modules.batchnorm import _BatchNorm


class SyncBatchNorm(_BatchNorm):
    """`nn.BatchNorm1d` and `2d` of the concatenated batch of all processes, `(n, C)` or `(n, C, ...)`; n may differ.

    Output, running statistics and the input's gradient are those of one process with the whole batch, given that
    process's gradient of the output. Gradients of weight and bias are those of the own rows, to be summed or, as
    DistributedDataParallel does with upstream gradients times the number of processes, averaged. Every process must
    call it, forward and backward, equally often; in evaluation nothing is sent. State dicts are interchangeable with
    those of `nn.BatchNorm1d`. ValueError in training if no default process group has been initialised.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"input: expected at least 2 dimensions, got shape {tuple(x.shape)}")

    # Collectives cannot be compiled into the graph; the layers between them can.
    @torch.compiler.disable
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        y, mean, variance, count = _Normalise.apply(x, self.weight, self.bias, self.eps)
        if self.running_mean is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
                unbiased = variance * (count / (count - 1))
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)
        return y

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module) -> nn.Module:
        """`module` with every BatchNorm in it replaced by this class, around the same parameters and buffers."""
        if isinstance(module, _BatchNorm):
            synchronised = cls(module.num_features, module.eps, module.momentum, module.affine,
                               module.track_running_stats)
            for name, value in [*module.named_parameters(), *module.named_buffers()]:
                setattr(synchronised, name, value)
            return synchronised.train(module.training)
        for name, child in module.named_children():
            setattr(module, name, cls.convert_sync_batchnorm(child))
        return module


class _Normalise(Function):
    """(x, weight, bias, eps) to (y, global mean, global biased variance, global count), the last three float64."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float):
        over = [d for d in range(x.dim()) if d != 1]
        rows, channels = x.numel() // x.shape[1], x.shape[1]
        wide = x if x.dtype == torch.float64 else x.float()
        # Mean and squares about it, not sums of squares: those cancel where the mean is large.
        statistics = torch.zeros(2 * channels + 1, dtype=torch.float64)
        if rows:
            variance, mean = torch.var_mean(wide, over, correction=0)
            statistics[0], statistics[1:channels + 1], statistics[channels + 1:] = rows, mean, variance
        # The same bits everywhere: each process gathers all parts and adds them in the same order.
        parts = [torch.empty_like(statistics) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, statistics)
        counts, means, variances = torch.stack(parts).split([1, channels, channels], dim=1)
        count = float(counts.sum())
        if count < 2:
            raise ValueError(f"input: expected at least 2 values per channel over all processes, got {count:.0f}")
        mean = (counts * means).sum(0) / count
        variance = (counts * (variances + (means - mean).square())).sum(0) / count
        inverse = (variance + eps).rsqrt()
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.count, ctx.over = count, over
        ctx.mark_non_differentiable(mean, variance)
        scale = inverse if weight is None else inverse * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        y = torch.addcmul(_channels(shift, wide), wide, _channels(scale, wide))
        return y.to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any):
        x, weight, mean, inverse = ctx.saved_tensors
        kind = torch.float64 if x.dtype == torch.float64 else torch.float32
        grad_y, centred = grad.to(kind), x.to(kind) - _channels(mean, x, kind)
        own = torch.stack([grad_y.sum(ctx.over), (grad_y * centred).sum(ctx.over)]).double()
        whole = own.clone()
        dist.all_reduce(whole)
        scale = inverse if weight is None else inverse * weight
        # d loss / d x = scale (g - mean(g) - x̂ mean(g x̂)), means over all processes.
        along, constant = -scale * inverse.square() * whole[1] / ctx.count, -scale * whole[0] / ctx.count
        grad_x = torch.addcmul(_channels(constant, x, kind), centred, _channels(along, x, kind))
        grad_x.addcmul_(grad_y, _channels(scale, x, kind))
        grad_weight = None if weight is None else (own[1] * inverse).to(weight.dtype)
        grad_bias = None if weight is None else own[0].to(weight.dtype)
        return grad_x.to(x.dtype), grad_weight, grad_bias, None


def _channels(values: Tensor, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """One value per channel, to be broadcast against `like`."""
    return values.to(dtype or like.dtype).view(-1, *[1] * (like.dim() - 2))
