"""The oracle over many processes: every rank has the rows of all and computes the whole, without a share of its own."""

from __future__ import annotations

from typing import Any

import torch

from ..options import Group
from . import groups
from .argument_check import Call, check_arguments
from .rows import RowsOfRanks


@torch.compiler.disable
def everyones_rows(process_group: Group, call: Call, views: list[torch.Tensor]) -> list[torch.Tensor]:
    """The views' rows of all ranks, differentiable in this rank's; the ranks' arguments are compared."""
    ranks = groups.of(process_group)
    with ranks.call():
        counts, _ = check_arguments(ranks, call, torch.device("cpu") if not views else views[0].device)
        if call.layout == "replicated":
            return views
        rows, gathered = RowsOfRanks(ranks, counts, call.layout), []
        for h in views:
            everything = rows.gather(h.detach())().split(counts)
            own = _Times.apply(h, float(ranks.world))
            gathered.append(torch.cat([*everything[: ranks.rank], own, *everything[ranks.rank + 1 :]]))
        return gathered


class _Times(torch.autograd.Function):
    """The same values, the gradient times a number; differentiable any number of times."""

    @staticmethod
    def forward(ctx: Any, h: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return h.view_as(h)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[torch.Tensor, None]:
        return upstream * ctx.factor, None
