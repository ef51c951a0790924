"""Times the parts of a sharded call, and counts what it hands to torch.distributed, from outside the library."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from typing import Any, Callable, Iterator

import torch
import torch.distributed as dist

from cplearn_kernels.distributed import collectives as ranks
from cplearn_kernels.distributed import loss as distributed

PARTS = ("agreement", "waiting for rows", "pass 1", "combine", "pass 2", "scalars", "gradient", "return")


class Parts:
    """While `watched`, seconds by part of a call, and bytes by collective that this rank sends under ring algorithms.

    Bytes sent: of an all-gather `(world - 1)` times the own part, of an all-reduce `2 (world - 1) / world` times the
    tensor, of an all-to-all all parts but the own one.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.bytes: dict[str, float] = defaultdict(float)
        self._inside = False

    def _timed(self, part: str, function: Callable) -> Callable:
        def wrapped(*arguments, **options) -> Any:
            # Of nested parts the outer one counts.
            if self._inside:
                return function(*arguments, **options)
            self._inside = True
            began = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.seconds[part] += time.perf_counter() - began
                self._inside = False

        return wrapped

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            def replace(owner, name, new) -> None:
                old = getattr(owner, name)
                stack.callback(setattr, owner, name, old)
                setattr(owner, name, new(old))

            replace(distributed, "agree", lambda old: self._timed("agreement", old))
            replace(distributed, "_combine", lambda old: self._timed("combine", old))
            replace(distributed, "_shard", self._with_timed_shard)
            replace(distributed._Rows, "gather", self._with_timed_result)
            replace(distributed._Rows, "reduce", lambda old: self._timed("return", old))
            replace(ranks.Ranks, "all_reduce", lambda old: self._timed("scalars", old))
            gather = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
            replace(dist, gather, self._counting_gather)
            replace(dist, "all_reduce", self._counting_reduce)
            replace(dist, "all_to_all_single", self._counting_exchange)
            yield

    def _with_timed_shard(self, old: Callable) -> Callable:
        def made(*arguments):
            shard, codes = old(*arguments)
            for method, part in (("row_sums", "pass 1"), ("code_sums", "pass 2"), ("gradients", "gradient")):
                setattr(shard, method, self._timed(part, getattr(shard, method)))
            return shard, codes

        return made

    def _with_timed_result(self, old: Callable) -> Callable:
        return lambda *arguments: self._timed("waiting for rows", old(*arguments))

    def _counting_gather(self, old: Callable) -> Callable:
        def counting(output: torch.Tensor, part: torch.Tensor, *rest, **options):
            self.bytes["all-gather"] += (_world(options) - 1) * part.nbytes
            return old(output, part, *rest, **options)

        return counting

    def _counting_reduce(self, old: Callable) -> Callable:
        def counting(tensor: torch.Tensor, *rest, **options):
            self.bytes["all-reduce"] += 2 * (_world(options) - 1) / _world(options) * tensor.nbytes
            return old(tensor, *rest, **options)

        return counting

    def _counting_exchange(self, old: Callable) -> Callable:
        def counting(output: torch.Tensor, source: torch.Tensor, received: list[int], sent: list[int], **options):
            own = sent[dist.get_rank(options["group"])]
            self.bytes["all-to-all"] += (sum(sent) - own) * source.element_size()
            return old(output, source, received, sent, **options)

        return counting


def _world(options: dict[str, Any]) -> int:
    return dist.get_world_size(options["group"])
