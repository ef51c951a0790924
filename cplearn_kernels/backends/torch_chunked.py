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
    """`reference.cplearn_loss` with its gradient: (loss, invariance, prior, grad1, grad2); no need, empty gradients.

    Pass 1 finds each row's best code and sum; pass 2 sees all rows of a chunk of codes at once, so that p̄ is complete
    there and the gradient's weights can be formed and summed without keeping anything of size c. What a row's best
    code contributes is set aside and added in float64 at the end: near the optimum it is nearly all of B and E, and
    cancels down to the small rest that the other codes give.
    """
    rows = h1.shape[0]
    with _exact(h1):
        h = _scaled(torch.cat([h1, h2]), dictionary, temperature)
        sums = _RowSums(h, dictionary)
        log_sum = sums.others.log1p()
        expected, pull = torch.zeros_like(h), torch.zeros_like(h)  # B, E without the best codes
        mass, weight_sum, agreement = (h.new_zeros(2 * rows) for _ in range(3))
        prior_sum = h.new_zeros(())
        best = _BestCodes(sums, h)
        for start, stop, codes in _chunks(h, dictionary):
            lead = h @ codes - sums.best[:, None]
            log_p = lead - log_sum[:, None]
            p = lead.exp_() / (1 + sums.others)[:, None]
            partner_log_p = _partner(log_p)
            q = None if prior_probs is None else prior_probs[start:stop].to(h)
            value, prior_weight = _prior_chunk(log_p.view(2, rows, -1), p.view(2, rows, -1), prior, q, dictionary)
            prior_weight = prior_weight.reshape(2 * rows, -1)
            best.set_aside(start, stop, codes, prior_weight, p, partner_log_p)
            prior_sum += value
            agreement += (p * partner_log_p).sum(1)
            if need_grad:
                weight = prior_weight.addcmul_(p, partner_log_p, value=-beta)
                mass += p.sum(1)
                weight_sum += weight.sum(1)
                expected.addmm_(p, codes.T)
                pull.addmm_(weight, codes.T)
        agreement = agreement.to(best.dtype) + best.p * best.partner_log_p
        invariance, prior_mean = -agreement.mean(), prior_sum.to(best.dtype) / 2
        dtype = _result_dtype(h1)
        terms = (term.to(dtype) for term in (prior_mean + beta * invariance, invariance, prior_mean))
        if not need_grad:
            return *terms, h.new_empty(0, dtype=dtype), h.new_empty(0, dtype=dtype)
        # Divided by the sum of the rounded p: `sum_j x_j (w_j - B)` needs weights that sum to 1 where codes share mass.
        expected = (expected + best.p[:, None] * best.code) / (mass + best.p)[:, None]
        best_weight = best.prior_weight - beta * best.p * best.partner_log_p
        pull = pull + best_weight[:, None] * best.code
        # sigma - beta t is the sum of the weights.
        grad = pull - (weight_sum + best_weight)[:, None] * expected + beta * (expected - _partner(expected))
        grad = (grad / (2 * rows * temperature)).to(dtype)
        return *terms, grad[:rows].clone(), grad[rows:].clone()


def projector_softmax(h, dictionary, temperature):
    """`reference.projector_softmax`, shape `(n, c)`."""
    with _exact(h):
        dtype = _result_dtype(h)
        h = _scaled(h, dictionary, temperature)
        p = h.new_empty(h.shape[0], dictionary.num_codes, dtype=dtype)
        for start, stop, _, part in _probabilities(h, dictionary):
            p[:, start:stop] = part
        return p


def projector_softmax_backward(upstream, h, p, dictionary, temperature):
    """`dL/dh_i = 1/temperature * sum_j p_ij (v_ij - sum_k p_ik v_ik) w_j` for `v = upstream` of shape `(n, c)`."""
    with _exact(h):
        scaled = _scaled(h, dictionary, temperature)
        p, upstream = p.to(scaled), upstream.to(scaled)
        centre = (p * upstream).sum(1, keepdim=True)
        grad = torch.zeros_like(scaled)
        for start, stop, codes in _chunks(scaled, dictionary):
            grad.addmm_(p[:, start:stop] * (upstream[:, start:stop] - centre), codes.T)
        return grad / temperature


def projector_logsumexp(h, dictionary, temperature):
    """`reference.projector_logsumexp`, shape `(n,)`."""
    with _exact(h):
        sums = _RowSums(_scaled(h, dictionary, temperature), dictionary)
        return (sums.best + sums.others.log1p()).to(_result_dtype(h))


def projector_logsumexp_backward(upstream, h, dictionary, temperature):
    """`dL/dh_i = v_i B_i / temperature` for `v = upstream` of shape `(n,)`."""
    return expected_code(h, dictionary, temperature) * (upstream / temperature)[:, None]


def expected_code(h, dictionary, temperature):
    """`reference.expected_code`, shape `(n, f)`."""
    with _exact(h):
        scaled = _scaled(h, dictionary, temperature)
        total = torch.zeros_like(scaled)
        for _, _, codes, p in _probabilities(scaled, dictionary):
            total.addmm_(p, codes.T)
        return total.to(_result_dtype(h))


def expected_code_backward(upstream, h, dictionary, temperature):
    """`dL/dh_i = 1/temperature * sum_j p_ij (v_ij - sum_k p_ik v_ik) w_j` with `v_ij = upstream_i · w_j`."""
    with _exact(h):
        return _weighted_backward(h, dictionary, temperature, lambda start, stop, codes: upstream.to(codes) @ codes)


def mean_assignment(h, dictionary, temperature):
    """`reference.mean_assignment`, shape `(c,)`."""
    with _exact(h):
        scaled = _scaled(h, dictionary, temperature)
        mean = scaled.new_empty(dictionary.num_codes, dtype=_result_dtype(h))
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
        dtype = _result_dtype(h)
        h = _scaled(h, dictionary, 1.0)
        scores, codes_found = h.new_empty(h.shape[0], 0), torch.empty(h.shape[0], 0, dtype=torch.int64, device=h.device)
        for start, stop, codes in _chunks(h, dictionary):
            index = torch.arange(start, stop, device=h.device).expand(h.shape[0], -1)
            scores = torch.cat([scores, h @ codes], dim=1)
            codes_found = torch.cat([codes_found, index], dim=1)
            # A stable sort: what was found earlier has the lower index and stays ahead among equals.
            best = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :top_k]
            scores, codes_found = scores.gather(1, best), codes_found.gather(1, best)
        return scores.to(dtype), codes_found


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
    scaled = _scaled(h, dictionary, temperature)
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
    sums = _RowSums(scaled, dictionary)
    for start, stop, codes in _chunks(scaled, dictionary):
        yield start, stop, codes, (scaled @ codes - sums.best[:, None]).exp_() / (1 + sums.others)[:, None]


def _partner(rows):
    """The same images' rows in the other view, for an array whose first half is view 1 and second half view 2."""
    return rows.view(2, rows.shape[0] // 2, -1).flip(0).reshape(rows.shape)


class _RowSums:
    """Pass 1: each row's best logit m, its code, and the sum of exp(s - m) over the other codes.

    Kept apart, because `1 + tiny` and one rounded log-sum-exp both cost the digits that count near the optimum.
    """

    def __init__(self, scaled, dictionary):
        self.best = scaled.new_full((scaled.shape[0],), -math.inf)
        self.others = torch.zeros_like(self.best)
        self.code = torch.zeros_like(self.best, dtype=torch.int64)
        for start, _, codes in _chunks(scaled, dictionary):
            s = scaled @ codes
            value, index = s.max(1)
            moved = value > self.best
            best = torch.where(moved, value, self.best)
            share = (s - best[:, None]).exp_()
            index = index[:, None]
            share.scatter_(1, index, share.gather(1, index).masked_fill(moved[:, None], 0))
            self.others = torch.where(moved, (self.others + 1) * (self.best - best).exp(), self.others) + share.sum(1)
            self.code = torch.where(moved, index[:, 0] + start, self.code)
            self.best = best


class _BestCodes:
    """What each row's best code contributes to pass 2, in float64 where the device has it."""

    def __init__(self, sums, h):
        self.dtype = torch.float32 if h.device.type == "mps" else torch.float64
        self.index = sums.code
        self.p = 1 / (1 + sums.others.to(self.dtype))
        self.prior_weight, self.partner_log_p = torch.zeros_like(self.p), torch.zeros_like(self.p)
        self.code = torch.zeros_like(h)

    def set_aside(self, start, stop, codes, prior_weight, p, partner_log_p):
        """Note the entries of the best codes that lie in this chunk, and zero them in `prior_weight` and `p`."""
        here = (self.index >= start) & (self.index < stop)
        column = (self.index - start).clamp(0, stop - start - 1)[:, None]
        self.prior_weight = torch.where(here, prior_weight.gather(1, column)[:, 0].to(self.dtype), self.prior_weight)
        self.partner_log_p = torch.where(here, partner_log_p.gather(1, column)[:, 0].to(self.dtype), self.partner_log_p)
        self.code = torch.where(here[:, None], codes[:, column[:, 0]].T, self.code)
        for weights in (prior_weight, p):
            weights.scatter_(1, column, weights.gather(1, column).masked_fill(here[:, None], 0))


def _chunks(scaled, dictionary: Dictionary):
    """Yield (start, stop, codes) over all codes; chunks are powers of two, so they cut no Hadamard block askew."""
    size = max(256, _CHUNK_ELEMENTS // (scaled.shape[0] + dictionary.num_features))
    size = 1 << (size.bit_length() - 1)
    for start in range(0, dictionary.num_codes, size):
        stop = min(start + size, dictionary.num_codes)
        yield start, stop, dictionary.to_dense(start, stop, dtype=scaled.dtype, device=scaled.device)


def _scaled(h, dictionary, temperature):
    """`h / temperature` in the dtype of the computation: float64 where float32 would not reach the tolerances.

    * float64 inputs;
    * few features: many codes are equal and share a row's mass, so that gradients are small differences of large
      sums; products over so few features cost next to nothing;
    * logits that can exceed 60 in size: a float32 product of 300 is off by 1e-5 and more. Looking at the values would
      make a GPU wait, so this is done on the CPU alone; elsewhere the error at such logits is up to 5e-5.
    """
    wide = h.dtype == torch.float64 or (h.shape[1] <= 16 and h.device.type != "mps")
    if not wide and h.device.type == "cpu":
        code_norm = h.shape[1] ** 0.5 if dictionary.weight is None else dictionary.weight.norm(dim=0).max().item()
        wide = h.norm(dim=1, dtype=torch.float32).max().item() * code_norm / temperature > 60
    return h.to(torch.float64 if wide else torch.float32) / temperature


def _result_dtype(h):
    return torch.float64 if h.dtype == torch.float64 else torch.float32


@contextlib.contextmanager
def _exact(h):
    """No autograd and no autocast: the products below must keep the precision that the caller was promised."""
    with torch.no_grad(), torch.autocast(h.device.type, enabled=False):
        yield
