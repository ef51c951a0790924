"""Processes that compute one loss together, one thread each: started, asked for steps, their traffic counted."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from typing import Any

import torch
import torch.distributed as dist

from bench.distributed.traffic import counted
from cplearn_kernels import HadamardDictionary, cplearn_loss

_SECONDS_TO_ANSWER = 600
_call: Callable[[], float]  # in a rank: one step of the case that was prepared


class Group(ExitStack):
    """`world` processes in one gloo group; a single one computes the loss on its own, without the group."""

    def __init__(self, world: int) -> None:
        super().__init__()
        store = os.path.join(self.enter_context(tempfile.TemporaryDirectory()), "store")
        spawn = multiprocessing.get_context("spawn")
        pools = (ProcessPoolExecutor(1, spawn, _join, (rank, world, store)) for rank in range(world))
        self._ranks = [self.enter_context(pool) for pool in pools]

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `prepare`, `step` or `traffic` returns on each rank, all of them at it at the same time."""
        answers = [rank.submit(function, *arguments) for rank in self._ranks]
        return [answer.result(_SECONDS_TO_ANSWER) for answer in answers]


def _join(rank: int, world: int, store: str) -> None:
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=300)
    dist.init_process_group("gloo", rank=rank, world_size=world, init_method=f"file://{store}", timeout=timeout)


def rows_of(case: Mapping[str, int], rank: int, world: int) -> list[torch.Tensor]:
    """This rank's rows of both views of a random batch, which does not depend on the number of ranks."""
    generator = torch.Generator().manual_seed(0)
    views = torch.nn.functional.normalize(torch.randn(2, case["N"], case["f"], generator=generator), dim=2)
    return [view.tensor_split(world)[rank].clone().requires_grad_() for view in views]


def prepare(case: Mapping[str, int], backend: str | None) -> None:
    """Makes the inputs of the steps that follow."""
    global _call
    rank, world = dist.get_rank(), dist.get_world_size()
    views, dictionary = rows_of(case, rank, world), HadamardDictionary(case["f"], case["c"])
    options = {"temperature": 0.3, "process_group": "world" if world > 1 else None, "backend": backend}

    def call() -> float:
        loss = cplearn_loss(*views, dictionary, **options)
        torch.autograd.grad(loss, views)
        return loss.item()

    _call = call


def step() -> float:
    """One loss with its gradient; the loss."""
    return _call()


def traffic() -> dict[str, float]:
    """The bytes of one step by collective. The step before it lets the ranks meet."""
    _call()
    with counted() as found:
        _call()
    return dict(found)
