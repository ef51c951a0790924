"""Backend "torch": every function, any device and dictionary, a chunk of codes at a time through torch's own GEMM.

Memory is O((n + f) * chunk), whatever c is. Each function computes the formula of the function of the same name in
`reference.py`; the gradients are those of docs/mathematics.md. Runs without autograd: `ops` attaches the backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ... import options
from ...dictionary import Dictionary
from ...options import result_dtype
from .. import interface
from ..results import best_of_chunks, loss_terms, no_gradients
from .shard import RowSums, Shard, chunks, exact, scaled_rows

NAME = "torch"
FUNCTIONS, DICTIONARIES, DTYPES = interface.FUNCTIONS, options.KINDS, options.DTYPES


def unavailable() -> str | None:
    return None


def unsupported_device(device: torch.device) -> str | None:
    return None


def unsupported_dictionary(dictionary: Dictionary) -> str | None:
    return None


def reservation(dictionary: Dictionary, device: torch.device) -> str | None:
    return None


def description() -> str:
    return "chunks of codes through torch's own GEMM"


def cplearn_loss(
    h1: Tensor,
    h2: Tensor,
    dictionary: Dictionary,
    temperature: float,
    beta: float,
    prior: str,
    prior_probs: Tensor | None,
    need_grad: bool,
) -> interface.LossResult:
    """`reference.cplearn_loss` with its gradient: (loss, invariance, prior, grad1, grad2); no need, empty gradients."""
    with exact(h1):
        shard, dtype = Shard(dictionary, temperature, 2), result_dtype(h1)
        shard.keep_row_sums(h1, h2)
        scalars, prior_sum = shard.code_sums(beta, prior, prior_probs, need_grad)
        terms = loss_terms(scalars, prior_sum, dictionary.num_codes, beta, dtype)
        if not need_grad:
            return *terms, *no_gradients(h1, dtype)
        grad1, grad2 = shard.gradients(scalars).chunk(2)
        return *terms, grad1.clone(), grad2.clone()


def projector_softmax(h: Tensor, dictionary: Dictionary, temperature: float) -> Tensor:
    """`reference.projector_softmax`, shape `(n, c)`."""
    with exact(h):
        dtype = result_dtype(h)
        h = scaled_rows(h, dictionary, temperature)
        p = h.new_empty(h.shape[0], dictionary.num_codes, dtype=dtype)
        for start, stop, _, part in _probabilities(h, dictionary):
            p[:, start:stop] = part
        return p


def projector_softmax_backward(
    upstream: Tensor, h: Tensor, p: Tensor, dictionary: Dictionary, temperature: float
) -> Tensor:
    """`dL/dh_i = 1/temperature * sum_j p_ij (v_ij - sum_k p_ik v_ik) w_j` for `v = upstream` of shape `(n, c)`."""
    with exact(h):
        scaled = scaled_rows(h, dictionary, temperature)
        p, upstream = p.to(scaled), upstream.to(scaled)
        centre = (p * upstream).sum(1, keepdim=True)
        grad = torch.zeros_like(scaled)
        for start, stop, codes in chunks(scaled, dictionary):
            grad.addmm_(p[:, start:stop] * (upstream[:, start:stop] - centre), codes.T)
        return grad / temperature


def projector_logsumexp(h: Tensor, dictionary: Dictionary, temperature: float) -> Tensor:
    """`reference.projector_logsumexp`, shape `(n,)`."""
    with exact(h):
        sums = RowSums(scaled_rows(h, dictionary, temperature), dictionary)
        return (sums.best + sums.others.log1p()).to(result_dtype(h))


def expected_code(h: Tensor, dictionary: Dictionary, temperature: float) -> Tensor:
    """`reference.expected_code`, shape `(n, f)`."""
    with exact(h):
        scaled = scaled_rows(h, dictionary, temperature)
        total = torch.zeros_like(scaled)
        for _, _, codes, p in _probabilities(scaled, dictionary):
            total.addmm_(p, codes.T)
        return total.to(result_dtype(h))


def expected_code_backward(upstream: Tensor, h: Tensor, dictionary: Dictionary, temperature: float) -> Tensor:
    """`dL/dh_i = 1/temperature * sum_j p_ij (v_ij - sum_k p_ik v_ik) w_j` with `v_ij = upstream_i · w_j`."""
    with exact(h):
        return _weighted_backward(h, dictionary, temperature, lambda start, stop, codes: upstream.to(codes) @ codes)


def mean_assignment(h: Tensor, dictionary: Dictionary, temperature: float) -> Tensor:
    """`reference.mean_assignment`, shape `(c,)`."""
    shard = Shard(dictionary, temperature, 1)
    shard.keep_row_sums(h)
    return shard.mean_assignment()


def mean_assignment_backward(upstream: Tensor, h: Tensor, dictionary: Dictionary, temperature: float) -> Tensor:
    """`dL/dh_i = 1/(n temperature) * sum_j p_ij (v_j - sum_k p_ik v_k) w_j` for `v = upstream` of shape `(c,)`."""
    with exact(h):
        grad = _weighted_backward(h, dictionary, temperature, lambda start, stop, codes: upstream[start:stop])
        return grad / h.shape[0]


def assign(h: Tensor, dictionary: Dictionary, top_k: int) -> tuple[Tensor, Tensor]:
    """`reference.assign` by a running top-k: (scores, codes), each `(n, top_k)`."""
    with exact(h):
        scaled = scaled_rows(h, dictionary, 1.0)
        scores = ((start, scaled @ codes) for start, _, codes in chunks(scaled, dictionary))
        best, found = best_of_chunks(scores, top_k)
        return best.to(result_dtype(h)), found


def _weighted_backward(
    h: Tensor, dictionary: Dictionary, temperature: float, weights: Callable[[int, int, Tensor], Tensor]
) -> Tensor:
    """`1/temperature * (sum_j p_ij v_ij w_j - (sum_k p_ik v_ik) B_i)`, with v given chunk by chunk."""
    scaled = scaled_rows(h, dictionary, temperature)
    weighted, total = torch.zeros_like(scaled), torch.zeros_like(scaled)
    centre = scaled.new_zeros(h.shape[0])
    for start, stop, codes, p in _probabilities(scaled, dictionary):
        pv = p * weights(start, stop, codes)
        centre += pv.sum(1)
        weighted.addmm_(pv, codes.T)
        total.addmm_(p, codes.T)
    return (weighted - centre[:, None] * total) / temperature


def _probabilities(scaled: Tensor, dictionary: Dictionary) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Yield (start, stop, codes, p) for each chunk."""
    sums = RowSums(scaled, dictionary)
    for start, stop, codes in chunks(scaled, dictionary):
        yield start, stop, codes, (scaled @ codes - sums.best[:, None]).exp_() / (1 + sums.others)[:, None]
