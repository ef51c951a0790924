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

from .argument_check import Call, agree
from ..dictionary import CodeRange, Dictionary
from .collectives import Ranks

# Up to so many ranks, every rank's best logits and sums are no more to send than a maximum and a sum over ranks.
_FEW_RANKS = 3
# Low bits of a logit's key that hold the rank; those of a float32 widened to float64 are zero.
_RANK_BITS = 16
_MAGNITUDE = torch.iinfo(torch.int64).max


def code_ranges(dictionary: Dictionary, world: int) -> list[CodeRange | None]:
    """The codes cut into contiguous ranges of whole blocks, one per rank, as equal as blocks allow; None: no codes."""
    return [code_range(dictionary, rank, world) for rank in range(world)]


def code_range(dictionary: Dictionary, rank: int, world: int) -> CodeRange | None:
    """The range of one rank, see `code_ranges`."""
    blocks = -(-dictionary.num_codes // dictionary.block_size)
    start, stop = (min(r * blocks // world * dictionary.block_size, dictionary.num_codes) for r in (rank, rank + 1))
    return CodeRange(dictionary, start, stop) if start < stop else None


def largest_range(dictionary: Dictionary, world: int) -> CodeRange:
    """The most that a rank works on: what the backend of all ranks has to serve."""
    return code_range(dictionary, world - 1, world)


def cplearn_loss(ranks: Ranks, backend, h1, h2, dictionary, temperature, beta, prior, prior_probs, need_grad, layout):
    """The loss of all ranks' rows: (loss, invariance, prior, grad1, grad2), the gradients those of this rank's rows."""
    call = Call("cplearn_loss", backend.NAME, dictionary, h1.dtype, layout, h1.shape[0], temperature, beta, prior,
                prior_probs, need_grad=need_grad)  # fmt: skip
    counts, someone_needs_grad = agree(ranks, call, h1.device)
    rows = _Rows(ranks, counts, layout)
    shard, codes = _shard(ranks, backend, dictionary, temperature, 2)
    _row_sums(ranks, shard, rows, [h1, h2])
    q = None if prior_probs is None or codes is None else prior_probs[codes.first_code :][: codes.num_codes]
    scalars, prior_sum = shard.code_sums(beta, prior, q, someone_needs_grad)
    sums = ranks.all_reduce(torch.cat([scalars.flatten(), prior_sum.reshape(1)]))
    scalars, prior_value = sums[:-1].view(scalars.shape), sums[-1] / 2
    invariance = math.log(dictionary.num_codes) - scalars[0].mean()
    dtype = _result_dtype(h1)
    terms = tuple(term.to(dtype) for term in (prior_value + beta * invariance, invariance, prior_value))
    grads = rows.reduce(shard.gradients(scalars)) if someone_needs_grad else None
    if not need_grad:
        return *terms, h1.new_empty(0, dtype=dtype), h1.new_empty(0, dtype=dtype)
    return *terms, *grads


def mean_assignment(ranks: Ranks, backend, h, dictionary, temperature, layout):
    """(p̄ of all ranks' rows, all of it on every rank; the factor that a gradient of this rank's rows misses)."""
    call = Call("mean_assignment", backend.NAME, dictionary, h.dtype, layout, h.shape[0], temperature)
    counts, _ = agree(ranks, call, h.device)
    shard, _ = _shard(ranks, backend, dictionary, temperature, 1)
    _row_sums(ranks, shard, _Rows(ranks, counts, layout), [h])
    own = shard.mean_assignment()
    lengths = [0 if codes is None else codes.num_codes for codes in code_ranges(dictionary, ranks.world)]
    parts = ranks.gather(_padded(own, max(lengths)))()
    mean = torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])
    # The gradient over this rank's rows divides by their number, not by that of all; and ranks are averaged.
    factor = 1.0 if layout == "replicated" else ranks.world * h.shape[0] / sum(counts)
    return mean, torch.tensor(factor, dtype=torch.float64)


def assign(ranks: Ranks, backend, h, dictionary, top_k, layout):
    """(scores, codes) of this rank's rows, best first, equal scores by index; each rank looks through its own codes."""
    call = Call("assign", backend.NAME, dictionary, h.dtype, layout, h.shape[0], top_k=top_k)
    counts, _ = agree(ranks, call, h.device)
    rows = _Rows(ranks, counts, layout)
    codes = code_range(dictionary, ranks.rank, ranks.world)
    everything, found = rows.gather(h)(), 0 if codes is None else min(top_k, codes.num_codes)
    dtype = _result_dtype(h)
    scores = torch.full((everything.shape[0], top_k), -math.inf, dtype=dtype, device=h.device)
    index = torch.zeros_like(scores, dtype=torch.int64)
    if found:
        scores[:, :found], index[:, :found] = backend.assign(everything, codes, found)
        index += codes.first_code
    scores, index = (rows.candidates(part) for part in (scores, index))
    # A stable sort: candidates come in the order of ranks, so among equals the lower index stays ahead.
    best = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :top_k]
    return scores.gather(1, best), index.gather(1, best)


def everyones_rows(ranks: Ranks, call: Call, views: list[torch.Tensor]) -> list[torch.Tensor]:
    """The views' rows of all ranks, differentiable in this rank's: for the oracle, which every rank computes whole."""
    counts, _ = agree(ranks, call, torch.device("cpu") if not views else views[0].device)
    if call.layout == "replicated":
        return views
    rows, gathered = _Rows(ranks, counts, call.layout), []
    for h in views:
        everything = rows.gather(h.detach())().split(counts)
        own = _Times.apply(h, float(ranks.world))
        gathered.append(torch.cat([*everything[: ranks.rank], own, *everything[ranks.rank + 1 :]]))
    return gathered


def merge_row_sums(best: torch.Tensor, others: torch.Tensor, rank: int, unit: float):
    """`(best, others, mine)` of all codes from every rank's `(world, rows)` values: what `_combine` finds over ranks.

    Of equal logits the first rank's is best.
    """
    top = best.max(0)
    owner = (best == top.values).to(torch.int8).argmax(0)
    is_owner = torch.arange(best.shape[0], device=best.device)[:, None] == owner
    return top.values, _share(best, others, is_owner, top.values, unit).sum(0), owner == rank


def _share(best, others, mine, top, unit):
    """This range's part of `sum_j exp(s_j - top)` over all codes but the row's best, which is `mine` or another's."""
    scale = ((best - top) * unit).exp()
    return others * scale + torch.where(mine, 0.0, scale)


def _combine(ranks: Ranks, shard, best: torch.Tensor, others: torch.Tensor) -> None:
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


def _ordered(x: torch.Tensor) -> torch.Tensor:
    """float64 as int64 in the same order, plus or minus the bits of its magnitude."""
    bits = x.view(torch.int64)
    return torch.where(bits < 0, -(bits & _MAGNITUDE), bits)


def _logit(ordered: torch.Tensor) -> torch.Tensor:
    """The inverse of `_ordered`."""
    magnitude = ordered.abs().view(torch.float64)
    return torch.where(ordered < 0, -magnitude, magnitude)


def _row_sums(ranks: Ranks, shard, rows: _Rows, views) -> None:
    """Pass 1 over all rows: while one view's is computed the next view is on its way."""
    arriving = [rows.gather(h.detach()) for h in views]
    parts = [shard.row_sums(view, arrived()) for view, arrived in enumerate(arriving)]
    _combine(ranks, shard, *(torch.cat(part) for part in zip(*parts, strict=True)))


def _shard(ranks: Ranks, backend, dictionary: Dictionary, temperature: float, num_views: int):
    codes = code_range(dictionary, ranks.rank, ranks.world)
    if codes is None:
        return _NoCodes(backend.Shard.LOG_UNIT, backend.Shard.ROW_SCALARS), None
    return backend.Shard(codes, temperature, num_views), codes


class _Rows:
    """Which rows are whose: the rows of all ranks one after the other, or the same ones on every rank."""

    def __init__(self, ranks: Ranks, counts: list[int], layout: str):
        self._ranks, self._counts, self._sharded = ranks, counts, layout == "sharded"

    def gather(self, h: torch.Tensor):
        """Start to collect one view's rows; the result, called, waits for them: (N, f)."""
        if not self._sharded:
            return lambda: h
        most = max(self._counts)
        arriving = self._ranks.gather(_padded(h, most))

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


class _NoCodes:
    """A rank's `Shard` where there are fewer blocks of codes than ranks: it contributes nothing, at every step."""

    def __init__(self, log_unit: float, row_scalars: int):
        self.LOG_UNIT, self._row_scalars = log_unit, row_scalars
        self._views: list[torch.Tensor] = []

    def row_sums(self, view, h):
        self._views.append(h)
        none = torch.zeros(h.shape[0], dtype=torch.float64, device=h.device)
        return none - math.inf, none

    def combine(self, best, others, mine):
        self._best = best

    def mean_assignment(self):
        h = self._views[0]
        return h.new_empty(0, dtype=_result_dtype(h))

    def code_sums(self, beta, prior, prior_probs, need_grad):
        return self._best.new_zeros(self._row_scalars, self._best.shape[0]), self._best.new_zeros(())

    def gradients(self, scalars):
        h = self._views[0]
        return h.new_zeros(scalars.shape[1], h.shape[1], dtype=_result_dtype(h))


class _Times(torch.autograd.Function):
    """The same values, the gradient times a number; differentiable any number of times."""

    @staticmethod
    def forward(ctx, h, factor):
        ctx.factor = factor
        return h.view_as(h)

    @staticmethod
    def backward(ctx, upstream):
        return upstream * ctx.factor, None


def _result_dtype(h: torch.Tensor) -> torch.dtype:
    return torch.float64 if h.dtype == torch.float64 else torch.float32


def _padded(tensor: torch.Tensor, length: int) -> torch.Tensor:
    """`tensor` with rows of zeros up to `length`."""
    if tensor.shape[0] == length:
        return tensor.contiguous()
    padded = tensor.new_zeros(length, *tensor.shape[1:])
    padded[: tensor.shape[0]] = tensor
    return padded
