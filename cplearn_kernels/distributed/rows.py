"""Which rows are whose: gathering embeddings from ranks, and giving gradients and candidates back to them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .collectives import Ranks


class RowsOfRanks:
    """Which rows are whose: the rows of all ranks one after the other, or the same ones on every rank."""

    def __init__(self, ranks: Ranks, counts: list[int], layout: str):
        self._ranks, self._counts, self._sharded = ranks, counts, layout == "sharded"

    def gather(self, h: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Start to collect one view's rows; the result, called, waits for them: (N, f)."""
        if not self._sharded:
            return lambda: h
        most = max(self._counts)
        arriving = self._ranks.gather(padded(h, most))

        def result() -> torch.Tensor:
            everything = arriving()
            if min(self._counts) == most:
                return everything.flatten(0, 1)
            return torch.cat([part[:count] for part, count in zip(everything, self._counts, strict=True)])

        return result

    def reduce(self, grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """This rank's rows of `grads`, (2 N, f) for both views, summed over ranks; times world if rows are sharded."""
        if not self._sharded:
            first, second = self._ranks.all_reduce(grads.contiguous()).chunk(2)
            return first.clone(), second.clone()
        parts = zip(*(view.split(self._counts) for view in grads.chunk(2)), strict=True)
        received = self._ranks.exchange(list(parts)).unflatten(1, (2, -1, grads.shape[1]))
        first, second = (received[:, view].sum(0) * self._ranks.world for view in (0, 1))
        return first, second

    def candidates(self, of_own_codes: torch.Tensor) -> torch.Tensor:
        """What all ranks found for this rank's rows, side by side: (N, k) to (n, world k)."""
        if not self._sharded:
            return self._ranks.gather(of_own_codes)().transpose(0, 1).flatten(1)
        received = self._ranks.exchange([[part] for part in of_own_codes.split(self._counts)])
        return received.unflatten(1, (-1, of_own_codes.shape[1])).transpose(0, 1).flatten(1)


def padded(tensor: torch.Tensor, length: int) -> torch.Tensor:
    """`tensor` with rows of zeros up to `length`."""
    if tensor.shape[0] == length:
        return tensor.contiguous()
    longer = tensor.new_zeros(length, *tensor.shape[1:])
    longer[: tensor.shape[0]] = tensor
    return longer
