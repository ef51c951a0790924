"""Backend "torch": every function, any device and dictionary, a chunk of codes at a time through torch's own GEMM.

Memory is O((n + f) * chunk), whatever c is. Each function computes the formula of the function of the same name in
`reference.py`; the gradients are those of docs/mathematics.md. Runs without autograd: `ops` attaches the backward.
"""

from __future__ import annotations

import contextlib
import math

import torch

from ..dictionary import Dictionary

NAME = "torch"
DICTIONARIES = ("hadamard", "rademacher", "dense")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# All functions of the operator table: nothing is left out.
FUNCTIONS = (
    "cplearn_loss", "projector_softmax", "projector_logsumexp", "expected_code", "mean_assignment", "assign",
)  # fmt: skip

# Elements that the arrays of one chunk may have together; about 16 MiB each in float32.
_CHUNK_ELEMENTS = 1 << 22


def unavailable() -> str | None:
    """Why this backend cannot run on this machine, or None."""
    return None


def unsupported_device(device: torch.device) -> str | None:
    """Why tensors on `device` cannot be used, or None."""
    return None


def cplearn_loss(h1, h2, dictionary, temperature, beta, prior, prior_probs, need_grad):
    """`reference.cplearn_loss` and its gradient: (loss, invariance, prior, grad1, grad2); empty gradients if unwanted.

    Pass 1 finds each row's (max, sum); pass 2 sees all rows of a chunk of codes at once, so that p̄ is complete there
    and the gradient's weights can be formed and summed without keeping anything of size c.
    """
    rows = h1.shape[0]
    with _exact(h1):
        h = _scaled(torch.cat([h1, h2]), temperature)
        row_max, row_sum = _max_and_sum(h, dictionary)
        log_sum = row_sum.log()
        expected = torch.zeros_like(h)  # B
        pull = torch.zeros_like(h)  # E
        mean_weight = h.new_zeros(2 * rows)  # sigma
        agreement = h.new_zeros(2 * rows)  # t
        prior_sum = h.new_zeros(())
        for start, stop, codes in _chunks(h, dictionary):
            lead = h @ codes - row_max[:, None]
            log_p = lead - log_sum[:, None]
            p = lead.exp() / row_sum[:, None]
            partner_log_p = log_p.view(2, rows, -1).flip(0).reshape(2 * rows, -1)
            agreement += (p * partner_log_p).sum(1)
            q = None if prior_probs is None else prior_probs[start:stop].to(h)
            value, prior_weight = _prior_chunk(log_p.view(2, rows, -1), p.view(2, rows, -1), prior, q, dictionary)
            prior_sum += value
            if need_grad:
                prior_weight = prior_weight.reshape(2 * rows, -1)
                mean_weight += prior_weight.sum(1)
                expected.addmm_(p, codes.T)
                pull.addmm_(prior_weight - beta * p * partner_log_p, codes.T)
        invariance = -agreement.sum() / (2 * rows)
        prior_mean = prior_sum / 2
        loss = prior_mean + beta * invariance
        if not need_grad:
            return loss, invariance, prior_mean, h.new_empty(0), h.new_empty(0)
        partner = expected.view(2, rows, -1).flip(0).reshape(2 * rows, -1)
        grad = pull - mean_weight[:, None] * expected
        grad += beta * (expected - partner + agreement[:, None] * expected)
        grad /= 2 * rows * temperature
        return loss, invariance, prior_mean, grad[:rows].clone(), grad[rows:].clone()


def projector_softmax(h, dictionary, temperature):
    """`reference.projector_softmax`, shape `(n, c)`."""
    with _exact(h):
        h = _scaled(h, temperature)
        row_max, row_sum = _max_and_sum(h, dictionary)
        p = h.new_empty(h.shape[0], dictionary.num_codes)
        for start, stop, codes in _chunks(h, dictionary):
            p[:, start:stop] = (h @ codes - row_max[:, None]).exp_() / row_sum[:, None]
        return p


def projector_softmax_backward(upstream, h, p, dictionary, temperature):
    """`dL/dh_i = 1/temperature * sum_j p_ij (v_ij - sum_k p_ik v_ik) w_j` for `v = upstream` of shape `(n, c)`."""
    with _exact(h):
        scaled = _scaled(h, temperature)
        centre = (p * upstream).sum(1, keepdim=True)
        grad = torch.zeros_like(scaled)
        for start, stop, codes in _chunks(scaled, dictionary):
            grad.addmm_(p[:, start:stop] * (upstream[:, start:stop] - centre), codes.T)
        return grad / temperature


def projector_logsumexp(h, dictionary, temperature):
    """`reference.projector_logsumexp`, shape `(n,)`."""
    with _exact(h):
        row_max, row_sum = _max_and_sum(_scaled(h, temperature), dictionary)
        return row_max + row_sum.log()


def projector_logsumexp_backward(upstream, h, dictionary, temperature):
    """`dL/dh_i = v_i B_i / temperature` for `v = upstream` of shape `(n,)`."""
    return expected_code(h, dictionary, temperature) * (upstream / temperature)[:, None]


def expected_code(h, dictionary, temperature):
    """`reference.expected_code`, shape `(n, f)`."""
    with _exact(h):
        scaled = _scaled(h, temperature)
        total = torch.zeros_like(scaled)
        for _, _, codes, p in _probabilities(scaled, dictionary):
            total.addmm_(p, codes.T)
        return total


def expected_code_backward(upstream, h, dictionary, temperature):
    """`dL/dh_i = 1/temperature * sum_j p_ij (v_ij - sum_k p_ik v_ik) w_j` with `v_ij = upstream_i · w_j`."""
    with _exact(h):
        return _weighted_backward(h, dictionary, temperature, lambda start, stop, codes: upstream @ codes)


def mean_assignment(h, dictionary, temperature):
    """`reference.mean_assignment`, shape `(c,)`."""
    with _exact(h):
        scaled = _scaled(h, temperature)
        mean = scaled.new_empty(dictionary.num_codes)
        for start, stop, _, p in _probabilities(scaled, dictionary):
            mean[start:stop] = p.mean(0)
        return mean


def mean_assignment_backward(upstream, h, dictionary, temperature):
    """`dL/dh_i = 1/(n temperature) * sum_j p_ij (v_j - sum_k p_ik v_k) w_j` for `v = upstream` of shape `(c,)`."""
    with _exact(h):
        grad = _weighted_backward(h, dictionary, temperature, lambda start, stop, codes: upstream[start:stop])
        return grad / h.shape[0]


def assign(h, dictionary, top_k):
    """`reference.assign` by a running top-k: (scores, codes), each `(n, top_k)`."""
    with _exact(h):
        h = _scaled(h, 1.0)
        scores, codes_found = h.new_empty(h.shape[0], 0), torch.empty(h.shape[0], 0, dtype=torch.int64, device=h.device)
        for start, stop, codes in _chunks(h, dictionary):
            index = torch.arange(start, stop, device=h.device).expand(h.shape[0], -1)
            scores = torch.cat([scores, h @ codes], dim=1)
            codes_found = torch.cat([codes_found, index], dim=1)
            # A stable sort: what was found earlier has the lower index and stays ahead among equals.
            best = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :top_k]
            scores, codes_found = scores.gather(1, best), codes_found.gather(1, best)
        return scores, codes_found


def _prior_chunk(log_p, p, prior, q, dictionary):
    """One chunk's share of both views' prior terms, and the weights `p_ij g_j`; `log_p`, `p` are (2, n, chunk)."""
    rows = p.shape[1]
    log_uniform = -math.log(dictionary.num_codes)
    if prior == "reverse_kl":
        mean = p.mean(1)
        # Where a mean underflows, p is 0 in every row and the term is 0: any finite g will do.
        g = mean.clamp_min(torch.finfo(p.dtype).tiny).log() - (log_uniform if q is None else q.log())
        return (mean * g).sum(), p * g[:, None, :]
    # p_ij g_j = -q_j exp(log p_ij - log mean_j), never through g = -q / mean, which overflows on aligned codes.
    log_mean = torch.logsumexp(log_p, 1) - math.log(rows)
    q = math.exp(log_uniform) if q is None else q
    return -(q * log_mean).sum(), -q * (log_p - log_mean[:, None, :]).exp()


def _weighted_backward(h, dictionary, temperature, weights):
    """`1/temperature * (sum_j p_ij v_ij w_j - (sum_k p_ik v_ik) B_i)`, with v given chunk by chunk."""
    scaled = _scaled(h, temperature)
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
    row_max, row_sum = _max_and_sum(scaled, dictionary)
    for start, stop, codes in _chunks(scaled, dictionary):
        yield start, stop, codes, (scaled @ codes - row_max[:, None]).exp_() / row_sum[:, None]


def _max_and_sum(scaled, dictionary):
    """Each row's largest logit m and `sum_j exp(s_ij - m)`: kept apart, because one rounded lse costs digits."""
    row_max = scaled.new_full((scaled.shape[0],), -math.inf)
    row_sum = scaled.new_zeros(scaled.shape[0])
    for _, _, codes in _chunks(scaled, dictionary):
        s = scaled @ codes
        new_max = torch.maximum(row_max, s.amax(1))
        row_sum = row_sum * (row_max - new_max).exp() + (s - new_max[:, None]).exp_().sum(1)
        row_max = new_max
    return row_max, row_sum


def _chunks(scaled, dictionary: Dictionary):
    """Yield (start, stop, codes) over all codes; chunks are powers of two, so they cut no Hadamard block askew."""
    size = max(256, _CHUNK_ELEMENTS // (scaled.shape[0] + dictionary.num_features))
    size = 1 << (size.bit_length() - 1)
    for start in range(0, dictionary.num_codes, size):
        stop = min(start + size, dictionary.num_codes)
        yield start, stop, dictionary.to_dense(start, stop, dtype=scaled.dtype, device=scaled.device)


def _scaled(h, temperature):
    """`h / temperature` in the dtype of the computation: float32, or float64 for float64 inputs."""
    return (h if h.dtype == torch.float64 else h.float()) / temperature


@contextlib.contextmanager
def _exact(h):
    """No autograd and no autocast: the products below must keep the precision that the caller was promised."""
    with torch.no_grad(), torch.autocast(h.device.type, enabled=False):
        yield
