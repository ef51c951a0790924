"""Backend "torch": every function, any device and dictionary, a chunk of codes at a time through torch's own GEMM.

Memory is O((n + f) * chunk), whatever c is. Each function computes the formula of the function of the same name in
`reference.py`; the gradients are those of docs/mathematics.md. Runs without autograd: `ops` attaches the backward.
"""

from __future__ import annotations

import math

import torch

from ...dictionary import Dictionary
from .shard import RowSums, Shard, chunks, exact, result_dtype, scaled_rows

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
        for start, stop, _, part in _probabilities(h, dictionary):
            p[:, start:stop] = part
        return p


def projector_softmax_backward(upstream, h, p, dictionary, temperature):
    """`dL/dh_i = 1/temperature * sum_j p_ij (v_ij - sum_k p_ik v_ik) w_j` for `v = upstream` of shape `(n, c)`."""
    with exact(h):
        scaled = scaled_rows(h, dictionary, temperature)
        p, upstream = p.to(scaled), upstream.to(scaled)
        centre = (p * upstream).sum(1, keepdim=True)
        grad = torch.zeros_like(scaled)
        for start, stop, codes in chunks(scaled, dictionary):
            grad.addmm_(p[:, start:stop] * (upstream[:, start:stop] - centre), codes.T)
        return grad / temperature


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
        scaled = scaled_rows(h, dictionary, temperature)
        total = torch.zeros_like(scaled)
        for _, _, codes, p in _probabilities(scaled, dictionary):
            total.addmm_(p, codes.T)
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


def _probabilities(scaled, dictionary):
    """Yield (start, stop, codes, p) for each chunk."""
    sums = RowSums(scaled, dictionary)
    for start, stop, codes in chunks(scaled, dictionary):
        yield start, stop, codes, (scaled @ codes - sums.best[:, None]).exp_() / (1 + sums.others)[:, None]


