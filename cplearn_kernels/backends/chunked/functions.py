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
from .passes import Assignments, RowSums, add_products, chunks, exact, precise, scaled_rows
from .shard import Shard

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
        for start, stop, _, part in _probabilities(h, dictionary, _assignments(RowSums(h, dictionary))):
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
        grad = torch.zeros_like(scaled, dtype=precise(h.device))
        for start, stop, codes in chunks(scaled, dictionary):
            add_products(grad, p[:, start:stop] * (upstream[:, start:stop] - centre), codes)
        return (grad / temperature).to(result_dtype(h))


def projector_logsumexp(h: Tensor, dictionary: Dictionary, temperature: float) -> Tensor:
    """`reference.projector_logsumexp`, shape `(n,)`."""
    with exact(h):
        sums = RowSums(scaled_rows(h, dictionary, temperature), dictionary)
        return (sums.best + sums.others.log1p()).to(result_dtype(h))


def expected_code(h: Tensor, dictionary: Dictionary, temperature: float) -> Tensor:
    """`reference.expected_code`, shape `(n, f)`."""
    with exact(h):
        sums = RowSums(scaled_rows(h, dictionary, temperature), dictionary)
        assignments = _assignments(sums)
        total = assignments.best_p[:, None] * sums.best_code
        for start, stop, codes, p in _probabilities(sums.scaled, dictionary, assignments):
            assignments.set_aside(start, stop, p, assignments.best_p)
            add_products(total, p, codes)
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
    """`1/temperature * sum_j p_ij (v_ij - sum_k p_ik v_ik) w_j`, with v given chunk by chunk.

    As in the loss, the best code is set aside: near the optimum its share and that of the mean cancel.
    """
    sums = RowSums(scaled_rows(h, dictionary, temperature), dictionary)
    assignments = _assignments(sums)
    best_p = assignments.best_p[:, None]
    weighted, expected = torch.zeros_like(sums.best_code, dtype=best_p.dtype), best_p * sums.best_code
    mass, weight_sum, best_weight = assignments.best_p, torch.zeros_like(sums.best), torch.zeros_like(sums.best)
    for start, stop, codes, p in _probabilities(sums.scaled, dictionary, assignments):
        v = weights(start, stop, codes).expand_as(p)
        here, column = assignments.place(start, stop)
        best_weight = torch.where(here, v.gather(1, column)[:, 0].to(mass), best_weight)
        assignments.set_aside(start, stop, p, mass)
        pv = p * v
        weight_sum, mass = weight_sum + pv.sum(1), mass + p.sum(1)
        add_products(weighted, pv, codes)
        add_products(expected, p, codes)
    best_weight = best_weight * assignments.best_p
    grad = weighted + best_weight[:, None] * sums.best_code
    grad -= ((weight_sum + best_weight) / mass)[:, None] * expected
    return (grad / temperature).to(result_dtype(h))


def _assignments(sums: RowSums) -> Assignments:
    return Assignments([sums.scaled], sums.top, sums.best, sums.others, sums.code)


def _probabilities(
    scaled: Tensor, dictionary: Dictionary, assignments: Assignments
) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Yield (start, stop, codes, p) for each chunk."""
    for start, stop, codes in chunks(scaled, dictionary):
        yield start, stop, codes, assignments.probabilities(assignments.lead(start, stop, codes))
