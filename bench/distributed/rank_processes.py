"""Processes that compute one loss together, one thread each: started, asked for steps, their traffic counted."""

from __future__ import annotations

import datetime
import os
import tempfile
import traceback
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing

from bench.distributed.traffic import counted
from cplearn_kernels import HadamardDictionary, cplearn_loss

_SECONDS_TO_ANSWER = 600


class Group:
    """`world` processes in one gloo group; a single one computes the loss on its own, without the group."""

    def __init__(self, world: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._ranks = []
        context = multiprocessing.get_context("spawn")
        for rank in range(world):
            here, there = context.Pipe()
            arguments = (rank, world, os.path.join(self._folder.name, "store"), there)
            process = context.Process(target=_work, args=arguments, daemon=True)
            process.start()
            there.close()
            self._ranks.append((process, here))

    def run(self, request: str, *arguments: Any) -> list[Any]:
        """What each rank answers to "prepare", "step" or "traffic"."""
        for _, pipe in self._ranks:
            pipe.send((request, *arguments))
        answers = []
        for rank, (_, pipe) in enumerate(self._ranks):
            if not pipe.poll(_SECONDS_TO_ANSWER):
                raise RuntimeError(f"rank {rank} did not answer within {_SECONDS_TO_ANSWER} s")
            good, value = pipe.recv()
            if not good:
                raise RuntimeError(f"rank {rank} of {len(self._ranks)}: {value}")
            answers.append(value)
        return answers

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *error: object) -> None:
        for process, _ in self._ranks:
            process.kill()
            process.join()
        self._folder.cleanup()


def rows_of(case: Mapping[str, int], rank: int, world: int) -> list[torch.Tensor]:
    """This rank's rows of both views of a random batch, which does not depend on the number of ranks."""
    generator = torch.Generator().manual_seed(0)
    views = torch.nn.functional.normalize(torch.randn(2, case["N"], case["f"], generator=generator), dim=2)
    return [view.tensor_split(world)[rank].clone().requires_grad_() for view in views]


def _work(rank: int, world: int, store: str, pipe) -> None:
    """Answers requests until the pipe closes."""
    try:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", rank=rank, world_size=world, init_method=f"file://{store}",
                                timeout=datetime.timedelta(seconds=300))  # fmt: skip
        group = "world" if world > 1 else None
        state: dict[str, Any] = {}

        def prepare(case: Mapping[str, int], backend: str | None) -> None:
            state.update(views=rows_of(case, rank, world), dictionary=HadamardDictionary(case["f"], case["c"]),
                         options={"temperature": 0.3, "process_group": group, "backend": backend})  # fmt: skip

        def step() -> float:
            loss = cplearn_loss(*state["views"], state["dictionary"], **state["options"])
            torch.autograd.grad(loss, state["views"])
            return loss.item()

        def traffic() -> dict[str, float]:
            step()  # groups compare notes once, when they meet
            with counted() as found:
                step()
            return dict(found)

        answers = {"prepare": prepare, "step": step, "traffic": traffic}
        while True:
            request, *arguments = pipe.recv()
            pipe.send((True, answers[request](*arguments)))
    except EOFError:
        pass
    except BaseException:
        pipe.send((False, traceback.format_exc()))
