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
            synchronised = cls(
                module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
            )
            for name, value in [*module.named_parameters(), *module.named_buffers()]:
                setattr(synchronised, name, value)
            return synchronised.train(module.training)
        for name, child in module.named_children():
            setattr(module, name, cls.convert_sync_batchnorm(child))
        return module


class _Normalise(Function):
    """(x, weight, bias, eps) to (y, global mean, global biased variance, global count), the last three float64.

    PyTorch's own CPU kernels do the passes over x: they are twice as fast as the same in elementwise operations.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float):
        rows, channels = x.numel() // x.shape[1], x.shape[1]
        statistics = torch.zeros(1 + 2 * channels, dtype=torch.float64)
        if rows:
            # Mean and squares about it, not sums of squares: those cancel where the mean is large.
            mean, variance = torch.batch_norm_update_stats(_wide(x), None, None, 0.0)
            statistics[0], statistics[1 : 1 + channels], statistics[1 + channels :] = rows, mean, variance
        # The same bits everywhere: each process gathers all parts and adds them in the same order.
        parts = [torch.empty_like(statistics) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, statistics)
        counts, means, variances = torch.stack(parts).split([1, channels, channels], dim=1)
        count = float(counts.sum())
        if count < 2:
            raise ValueError(f"input: expected at least 2 values per channel over all processes, got {count:.0f}")
        mean = (counts * means).sum(0) / count
        variance = (counts * (variances + (means - mean).square())).sum(0) / count
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.count, ctx.eps = count, eps
        ctx.mark_non_differentiable(mean, variance)
        wide = _wide(x)
        y = nn.functional.batch_norm(wide, mean.to(wide.dtype), variance.to(wide.dtype), weight, bias, False, 0.0, eps)
        return y.to(x.dtype), mean, variance, count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any):
        x, weight, mean, variance = ctx.saved_tensors
        wide = _wide(x)
        # With mean and variance as constants: the first part of the gradient of x, Σ g x̂ and Σ g of the own rows.
        if len(x):
            backward = torch.ops.aten.native_batch_norm_backward
            running = (mean.to(wide.dtype), variance.to(wide.dtype))
            found = backward(_wide(grad), wide, weight, *running, None, None, False, ctx.eps, [True, True, True])
            grad_x, grad_weight, grad_bias = found
        else:  # which that kernel divides by
            grad_x, grad_weight, grad_bias = wide, *wide.new_zeros(2, x.shape[1])
        sums = torch.stack([grad_weight, grad_bias]).double()
        dist.all_reduce(sums)
        # What the mean and the variance add to it: scale (-mean(g) - x̂ mean(g x̂)), means over all processes.
        inverse = (variance + ctx.eps).rsqrt()
        scale = inverse if weight is None else inverse * weight
        along = -scale * inverse * sums[0] / ctx.count
        constant = -scale * sums[1] / ctx.count - along * mean
        for_channel = [value.to(wide.dtype).view(-1, *[1] * (x.dim() - 2)) for value in (along, constant)]
        grad_x.addcmul_(wide, for_channel[0]).add_(for_channel[1])
        own = (None, None) if weight is None else (grad_weight.to(weight.dtype), grad_bias.to(weight.dtype))
        return grad_x.to(x.dtype), *own, None


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
