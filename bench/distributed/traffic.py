"""The bytes that a rank sends in one step of the loss: counted where torch.distributed gets them, and a formula."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from unittest import mock

import torch.distributed as dist

COLLECTIVES = ("all-to-all", "all-gather", "all-reduce")
# What the argument check compares: the number of the call and its arguments, eight bytes each.
_COMPARED_INTEGERS = 17
# Up to so many ranks, best logits and sums are gathered together instead of reduced one after the other.
_FEW_RANKS = 3


def bytes_sent(N: int, f: int, world: int, *, element: int, row_scalars: int) -> dict[str, float]:
    """Bytes that each rank sends in a step, forward and gradient, by collective, whatever the number of codes.

    An all-gather sends the own part to the R - 1 others, an all-reduce 2 (R - 1) / R of the tensor (a ring), an
    all-to-all what is not the own part. With R ranks, N rows per view on all of them together, f features, embeddings
    of `element` bytes and S = `row_scalars` numbers per row that the backend adds up over ranks:

        argument check   all-to-all   136 (R - 1)
        rows             all-gather   2 N f element (R - 1) / R
        best and sums    all-gather   32 N (R - 1)                   up to three ranks
                         all-reduce   2 (16 + 32) N (R - 1) / R      more
        scalars          all-reduce   2 (16 S N + 8) (R - 1) / R
        gradients        all-to-all   8 N f (R - 1) / R

    In "rows" N is rounded up to a multiple of R: shorter parts are padded.
    """
    share = (world - 1) / world
    few = world <= _FEW_RANKS
    longest = -(-N // world) * world
    return {
        "all-to-all": 8 * _COMPARED_INTEGERS * (world - 1) + 8 * N * f * share,
        "all-gather": 2 * longest * f * element * share + (32 * N * (world - 1) if few else 0),
        "all-reduce": 2 * share * (16 * row_scalars * N + 8 + (0 if few else 48 * N)),
    }


# Names of torch.distributed's functions, the second since PyTorch 2.13; what the formula counts of their arguments.
_GATHER = "all_gather_single" if hasattr(dist, "all_gather_single") else "all_gather_into_tensor"
_COUNTED = {
    _GATHER: ("all-gather", lambda rank, world, output, part: (world - 1) * part.nbytes),
    "all_reduce": ("all-reduce", lambda rank, world, tensor, operation: 2 * (world - 1) / world * tensor.nbytes),
    "all_to_all_single": ("all-to-all", lambda rank, world, output, source, received, sent:
                          (sum(sent) - sent[rank]) * source.element_size()),
}  # fmt: skip
_NOT_COUNTED = ("all_gather", "all_to_all", "broadcast", "reduce", "reduce_scatter", "reduce_scatter_tensor", "isend")


@contextlib.contextmanager
def counted() -> Iterator[dict[str, float]]:
    """Inside, what this rank hands to torch.distributed is counted by collective, in the bytes of the formula above."""
    found: dict[str, float] = defaultdict(float)

    def hooked(name: str, call: Callable) -> Callable:
        def counting(*arguments, **options):
            if name in _NOT_COUNTED:
                raise NotImplementedError(f"{name} is not counted here, and the loss calls it")
            collective, size = _COUNTED[name]
            group = options["group"]
            found[collective] += size(dist.get_rank(group), dist.get_world_size(group), *arguments)
            return call(*arguments, **options)

        return counting

    with contextlib.ExitStack() as stack:
        for name in (*_COUNTED, *_NOT_COUNTED):
            stack.enter_context(mock.patch.object(dist, name, hooked(name, getattr(dist, name))))
        yield found
