"""Backend "torch": every function, any device and dictionary, a chunk of codes at a time through torch's own GEMM.

Memory is O((n + f) * chunk), whatever c is. Each function computes the formula of the function of the same name in
`reference.py`; the gradients are those of docs/mathematics.md. Runs without autograd: `ops` attaches the backward.
"""

from __future__ import annotations

import math

import torch

from ...dictionary import Dictionary
from .passes import Assignments, RowSums, add_products, chunks, exact, precise, result_dtype, scaled_rows
from .shard import Shard

NAME = "torch"
DICTIONARIES = ("hadamard", "rademacher", "dense")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# All functions of the operator table: nothing is left out.
FUNCTIONS = (
    "cplearn_loss", "projector_softmax", "projector_logsumexp", "expected_code", "mean_assignment", "assign",
)  # fmt: skip


def unavailable() -> str | None:
    """Why this backend cannot run on this machine, or None."""
    return None


def unsupported_device(device: torch.device) -> str | None:
    """Why tensors on `device` cannot be used, or None."""
    return None


def unsupported_dictionary(dictionary: Dictionary) -> str | None:
    """Why the codes of `dictionary` cannot be used, or None."""
    return None


def reservation(dictionary: Dictionary, device: torch.device) -> str | None:
    """Why a call that names no backend should not come here, or None."""
    return None


def description() -> str:
    """One line on what runs."""
    return "chunks of codes through torch's own GEMM"


def cplearn_loss(h1, h2, dictionary, temperature, beta, prior, prior_probs, need_grad):
    """`reference.cplearn_loss` with its gradient: (loss, invariance, prior, grad1, grad2); no need, empty gradients."""
    with exact(h1):
        shard, dtype = Shard(dictionary, temperature, 2), result_dtype(h1)
        shard.keep_row_sums(h1, h2)
        scalars, prior_sum = shard.code_sums(beta, prior, prior_probs, need_grad)
        invariance, prior_mean = math.log(dictionary.num_codes) - scalars[0].mean(), prior_sum / 2
        terms = (term.to(dtype) for term in (prior_mean + beta * invariance, invariance, prior_mean))
        if not need_grad:
            return *terms, h1.new_empty(0, dtype=dtype), h1.new_empty(0, dtype=dtype)
        return *terms, *(grad.clone() for grad in shard.gradients(scalars).chunk(2))


def projector_softmax(h, dictionary, temperature):
    """`reference.projector_softmax`, shape `(n, c)`."""
    with exact(h):
        dtype = result_dtype(h)
        h = scaled_rows(h, dictionary, temperature)
        p = h.new_empty(h.shape[0], dictionary.num_codes, dtype=dtype)
        for start, stop, _, part in _probabilities(h, dictionary, _assignments(RowSums(h, dictionary))):
            p[:, start:stop] = part
        return p


def projector_softmax_backward(upstream, h, p, dictionary, temperature):
    """`dL/dh_i = 1/temperature * sum_j p_ij (v_ij - sum_k p_ik v_ik) w_j` for `v = upstream` of shape `(n, c)`."""
    with exact(h):
        scaled = scaled_rows(h, dictionary, temperature)
        p, upstream = p.to(scaled), upstream.to(scaled)
        centre = (p * upstream).sum(1, keepdim=True)
        grad = torch.zeros_like(scaled, dtype=precise(h.device))
        for start, stop, codes in chunks(scaled, dictionary):
            add_products(grad, p[:, start:stop] * (upstream[:, start:stop] - centre), codes)
        return (grad / temperature).to(result_dtype(h))


def projector_logsumexp(h, dictionary, temperature):
    """`reference.projector_logsumexp`, shape `(n,)`."""
    with exact(h):
        sums = RowSums(scaled_rows(h, dictionary, temperature), dictionary)
        return (sums.best + sums.others.log1p()).to(result_dtype(h))


def projector_logsumexp_backward(upstream, h, dictionary, temperature):
    """`dL/dh_i = v_i B_i / temperature` for `v = upstream` of shape `(n,)`."""
    return expected_code(h, dictionary, temperature) * (upstream / temperature)[:, None]


def expected_code(h, dictionary, temperature):
    """`reference.expected_code`, shape `(n, f)`."""
    with exact(h):
        sums = RowSums(scaled_rows(h, dictionary, temperature), dictionary)
        assignments = _assignments(sums)
        total = assignments.best_p[:, None] * sums.best_code
        for start, stop, codes, p in _probabilities(sums.scaled, dictionary, assignments):
            assignments.set_aside(start, stop, p, assignments.best_p)
            add_products(total, p, codes)
        return total.to(result_dtype(h))


def expected_code_backward(upstream, h, dictionary, temperature):
    """`dL/dh_i = 1/temperature * sum_j p_ij (v_ij - sum_k p_ik v_ik) w_j` with `v_ij = upstream_i · w_j`."""
    with exact(h):
        return _weighted_backward(h, dictionary, temperature, lambda start, stop, codes: upstream.to(codes) @ codes)


def mean_assignment(h, dictionary, temperature):
    """`reference.mean_assignment`, shape `(c,)`."""
    shard = Shard(dictionary, temperature, 1)
    shard.keep_row_sums(h)
    return shard.mean_assignment()


def mean_assignment_backward(upstream, h, dictionary, temperature):
    """`dL/dh_i = 1/(n temperature) * sum_j p_ij (v_j - sum_k p_ik v_k) w_j` for `v = upstream` of shape `(c,)`."""
    with exact(h):
        grad = _weighted_backward(h, dictionary, temperature, lambda start, stop, codes: upstream[start:stop])
        return grad / h.shape[0]


def assign(h, dictionary, top_k):
    """`reference.assign` by a running top-k: (scores, codes), each `(n, top_k)`."""
    with exact(h):
        dtype = result_dtype(h)
        h = scaled_rows(h, dictionary, 1.0)
        scores, codes_found = h.new_empty(h.shape[0], 0), torch.empty(h.shape[0], 0, dtype=torch.int64, device=h.device)
        for start, stop, codes in chunks(h, dictionary):
            index = torch.arange(start, stop, device=h.device).expand(h.shape[0], -1)
            scores = torch.cat([scores, h @ codes], dim=1)
            codes_found = torch.cat([codes_found, index], dim=1)
            # A stable sort: what was found earlier has the lower index and stays ahead among equals.
            best = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :top_k]
            scores, codes_found = scores.gather(1, best), codes_found.gather(1, best)
        return scores.to(dtype), codes_found


def _weighted_backward(h, dictionary, temperature, weights):
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


def _assignments(sums):
    return Assignments([sums.scaled], sums.top, sums.best, sums.others, sums.code)


def _probabilities(scaled, dictionary, assignments):
    """Yield (start, stop, codes, p) for each chunk."""
    for start, stop, codes in chunks(scaled, dictionary):
        yield start, stop, codes, assignments.probabilities(assignments.lead(start, stop, codes))
