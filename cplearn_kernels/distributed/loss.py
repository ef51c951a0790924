"""The functions over many processes: rows are gathered, codes sharded over the ranks, sums combined.

Every rank works on a contiguous range of the codes and on the rows of all ranks, so that p̄ is exact. What crosses the
network does not depend on the number of codes: rows on their way in, three reductions of a few numbers per row, rows
of gradients on their way out (docs/scaling.md counts the bytes). All collectives run in the forward, on detached rows;
what they leave for the backward is local. The steps on one rank's codes are the backend's class `Shard`.

`layout` "sharded": each rank holds rows of its own, and its gradient is `world * dL/dh`, because
DistributedDataParallel and FSDP average over ranks. "replicated": every rank holds the same rows, and the gradient is
`dL/dh`.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from ..backends.interface import Backend, LossResult, Shard
from ..backends.results import best_of, loss_terms, no_gradients
from ..dictionary import Dictionary
from ..options import result_dtype
from .argument_check import Call, check_arguments
from .collectives import Ranks
from .ranges import CodeRange, code_range, code_ranges
from .rows import RowsOfRanks, padded

# Up to so many ranks, every rank's best logits and sums are no more to send than a maximum and a sum over ranks.
_FEW_RANKS = 3
# Low bits of a logit's key that hold the rank; those of a float32 widened to float64 are zero.
_RANK_BITS = 16
_MAGNITUDE = torch.iinfo(torch.int64).max


def cplearn_loss(
    ranks: Ranks,
    backend: Backend,
    h1: Tensor,
    h2: Tensor,
    dictionary: Dictionary,
    temperature: float,
    beta: float,
    prior: str,
    prior_probs: Tensor | None,
    need_grad: bool,
    layout: str,
) -> LossResult:
    """The loss of all ranks' rows: (loss, invariance, prior, grad1, grad2), the gradients those of this rank's rows."""
    call = Call("cplearn_loss", backend.NAME, dictionary, h1.dtype, layout, h1.shape[0], temperature, beta, prior,
                prior_probs, need_grad=need_grad)  # fmt: skip
    counts, someone_needs_grad = check_arguments(ranks, call, h1.device)
    rows, dtype = RowsOfRanks(ranks, counts, layout), result_dtype(h1)
    shard, codes = _shard(ranks, backend, dictionary, temperature, 2)
    _row_sums(ranks, shard, rows, [h1, h2])
    q = None if prior_probs is None or codes is None else prior_probs[codes.first_code :][: codes.num_codes]
    scalars, prior_sum = shard.code_sums(beta, prior, q, someone_needs_grad)
    sums = ranks.all_reduce(torch.cat([scalars.flatten(), prior_sum.reshape(1)]))
    scalars = sums[:-1].view(scalars.shape)
    grads = rows.reduce(shard.gradients(scalars)) if someone_needs_grad else no_gradients(h1, dtype)
    terms = loss_terms(scalars, sums[-1], dictionary.num_codes, beta, dtype)
    return *terms, *(grads if need_grad else no_gradients(h1, dtype))


def mean_assignment(
    ranks: Ranks, backend: Backend, h: Tensor, dictionary: Dictionary, temperature: float, layout: str
) -> tuple[Tensor, Tensor]:
    """(p̄ of all ranks' rows, all of it on every rank; the factor that a gradient of this rank's rows misses)."""
    call = Call("mean_assignment", backend.NAME, dictionary, h.dtype, layout, h.shape[0], temperature)
    counts, _ = check_arguments(ranks, call, h.device)
    shard, _ = _shard(ranks, backend, dictionary, temperature, 1)
    _row_sums(ranks, shard, RowsOfRanks(ranks, counts, layout), [h])
    own = shard.mean_assignment()
    lengths = [0 if codes is None else codes.num_codes for codes in code_ranges(dictionary, ranks.world)]
    parts = ranks.gather(padded(own, max(lengths)))()
    mean = torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])
    # The gradient over this rank's rows divides by their number, not by that of all; and ranks are averaged.
    factor = 1.0 if layout == "replicated" else ranks.world * h.shape[0] / sum(counts)
    return mean, torch.tensor(factor, dtype=torch.float64)


def assign(
    ranks: Ranks, backend: Backend, h: Tensor, dictionary: Dictionary, top_k: int, layout: str
) -> tuple[Tensor, Tensor]:
    """(scores, codes) of this rank's rows, best first, equal scores by index; each rank looks through its own codes."""
    call = Call("assign", backend.NAME, dictionary, h.dtype, layout, h.shape[0], top_k=top_k)
    counts, _ = check_arguments(ranks, call, h.device)
    rows = RowsOfRanks(ranks, counts, layout)
    codes = code_range(dictionary, ranks.rank, ranks.world)
    everything, found = rows.gather(h)(), 0 if codes is None else min(top_k, codes.num_codes)
    scores = torch.full((everything.shape[0], top_k), -math.inf, dtype=result_dtype(h), device=h.device)
    index = torch.zeros_like(scores, dtype=torch.int64)
    if codes is not None:
        scores[:, :found], index[:, :found] = backend.assign(everything, codes, found)
        index += codes.first_code
    # Candidates come in the order of ranks, so among equals the lower index stays ahead.
    return best_of(rows.candidates(scores), rows.candidates(index), top_k)


def merge_row_sums(best: Tensor, others: Tensor, rank: int, unit: float) -> tuple[Tensor, Tensor, Tensor]:
    """`(best, others, mine)` of all codes from every rank's `(world, rows)` values: what `_combine` finds over ranks.

    Of equal logits the first rank's is best.
    """
    top = best.max(0)
    owner = (best == top.values).to(torch.int8).argmax(0)
    is_owner = torch.arange(best.shape[0], device=best.device)[:, None] == owner
    return top.values, _share(best, others, is_owner, top.values, unit).sum(0), owner == rank


def _share(best: Tensor, others: Tensor, mine: Tensor, top: Tensor, unit: float) -> Tensor:
    """This range's part of `sum_j exp(s_j - top)` over all codes but the row's best, which is `mine` or another's."""
    scale = ((best - top) * unit).exp()
    return others * scale + torch.where(mine, 0.0, scale)


def _combine(ranks: Ranks, shard: Shard, best: Tensor, others: Tensor) -> None:
    """Hand the shard each row's best logit and sum over all codes: one maximum and one sum over ranks.

    Few ranks tell each other everything instead, in one collective. The maximum is over integers in the order of the
    logits, their last bits replaced by the rank: it names the one rank that holds a row's best code, also among equals.
    For logits in float32 nothing is lost; in float64 "best" is then within 2^-36 of the largest, and its exact value
    comes with the sum.
    """
    unit, low = shard.LOG_UNIT, (1 << _RANK_BITS) - 1
    if ranks.world <= _FEW_RANKS:
        everyones = ranks.gather(torch.stack([best, others]))()
        shard.combine(*merge_row_sums(everyones[:, 0], everyones[:, 1], ranks.rank, unit))
        return
    key = ranks.all_reduce(_ordered(best) & ~low | (low - ranks.rank), dist.ReduceOp.MAX)
    mine = (key & low) == low - ranks.rank
    top = _logit(key & ~low)
    share = _share(best, others, mine, top, unit)
    total, exact_top = ranks.all_reduce(torch.stack([share, torch.where(mine, best, 0.0)]))
    shard.combine(exact_top, total * ((top - exact_top) * unit).exp(), mine)


def _ordered(x: Tensor) -> Tensor:
    """float64 as int64 in the same order, plus or minus the bits of its magnitude."""
    bits = x.view(torch.int64)
    return torch.where(bits < 0, -(bits & _MAGNITUDE), bits)


def _logit(ordered: Tensor) -> Tensor:
    """The inverse of `_ordered`."""
    magnitude = ordered.abs().view(torch.float64)
    return torch.where(ordered < 0, -magnitude, magnitude)


def _row_sums(ranks: Ranks, shard: Shard, rows: RowsOfRanks, views: list[Tensor]) -> None:
    """Pass 1 over all rows: while one view's is computed the next view is on its way."""
    arriving = [rows.gather(h.detach()) for h in views]
    parts = [shard.row_sums(view, arrived()) for view, arrived in enumerate(arriving)]
    _combine(ranks, shard, *(torch.cat(part) for part in zip(*parts, strict=True)))


def _shard(
    ranks: Ranks, backend: Backend, dictionary: Dictionary, temperature: float, num_views: int
) -> tuple[Shard, CodeRange | None]:
    codes = code_range(dictionary, ranks.rank, ranks.world)
    if codes is None:
        return _NoCodes(backend.Shard), None
    return backend.Shard(codes, temperature, num_views), codes


class _NoCodes:
    """A rank's `Shard` where there are fewer blocks of codes than ranks: it contributes nothing, at every step."""

    def __init__(self, of_others: type[Shard]) -> None:
        self.LOG_UNIT, self.ROW_SCALARS = of_others.LOG_UNIT, of_others.ROW_SCALARS
        self._views: list[Tensor] = []

    def row_sums(self, view: int, h: Tensor) -> tuple[Tensor, Tensor]:
        self._views.append(h)
        none = torch.zeros(h.shape[0], dtype=torch.float64, device=h.device)
        return none - math.inf, none

    def combine(self, best: Tensor, others: Tensor, mine: Tensor) -> None:
        self._best = best

    def mean_assignment(self) -> Tensor:
        h = self._views[0]
        return h.new_empty(0, dtype=result_dtype(h))

    def code_sums(self, beta: float, prior: str, prior_probs: Tensor | None, need_grad: bool) -> tuple[Tensor, Tensor]:
        return self._best.new_zeros(self.ROW_SCALARS, self._best.shape[0]), self._best.new_zeros(())

    def gradients(self, scalars: Tensor) -> Tensor:
        h = self._views[0]
        return h.new_zeros(scalars.shape[1], h.shape[1], dtype=result_dtype(h))
