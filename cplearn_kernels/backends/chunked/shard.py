"""The steps of a loss over a range of codes, by chunks through torch's own GEMM.

Formulas and gradients are those of docs/mathematics.md. Memory is O((n + f) * chunk), whatever c is.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...dictionary import Dictionary
from ...options import result_dtype
from .passes import Assignments, RowSums, add_products, chunks, exact, precise, scaled_rows


class Shard:
    """One range of codes against all rows: the steps of a loss between which ranks combine numbers (`distributed`).

    Pass 1 (`row_sums`) finds each row's best code and sum; pass 2 (`code_sums`) sees all rows of a chunk of codes at
    once, so that p̄ is complete there and the gradient's weights can be formed and summed without keeping anything of
    size c. What a row's best code contributes is set aside and added in float64 at the end: near the optimum it is
    nearly all of B and E, and cancels down to the small rest that the other codes give.
    """

    LOG_UNIT = 1.0
    # Agreement; without the best code: sum of p, sum of the weights; the best code's weight.
    ROW_SCALARS = 4

    def __init__(self, dictionary: Dictionary, temperature: float, num_views: int) -> None:
        self.dictionary, self.temperature = dictionary, temperature
        self._views: list[Any] = [None] * num_views

    def row_sums(self, view: int, h: Tensor) -> tuple[Tensor, Tensor]:
        """(best, others) of one view's rows, float64 `(n,)`: the largest logit and `sum exp(s - best)` of the rest."""
        with exact(h):
            self._result_dtype = result_dtype(h)
            scaled = scaled_rows(h, self.dictionary, self.temperature)
            sums = RowSums(scaled, self.dictionary, len(self._views) * h.shape[0])
            self._views[view] = sums
            return sums.best, sums.others

    def combine(self, best: Tensor, others: Tensor, mine: Tensor) -> None:
        """Take the values of all codes, `(views * n,)`; `mine`: whether the row's best code lies in this range."""
        top, code = (torch.cat([getattr(sums, name) for sums in self._views]) for name in ("top", "code"))
        self._take(torch.where(mine, top, best.to(top)), best, others, torch.where(mine, code, -1))

    def keep_row_sums(self, *views: Tensor) -> None:
        """`row_sums` of all views at once and `combine`, where one range is all there is."""
        h = torch.cat(views)
        with exact(h):
            self._result_dtype = result_dtype(h)
            sums = RowSums(scaled_rows(h, self.dictionary, self.temperature), self.dictionary)
            self._views = [sums]
            self._take(sums.top, sums.best, sums.others, sums.code)

    def _take(self, top: Tensor, best: Tensor, others: Tensor, code: Tensor) -> None:
        parts = [sums.scaled for sums in self._views]
        self._h, self._best_code = torch.cat(parts), torch.cat([sums.best_code for sums in self._views])
        self._assignments = Assignments(parts, top, best, others, code)
        self._views = []

    def mean_assignment(self) -> Tensor:
        """p̄ of the range's codes over all rows of the one view."""
        with exact(self._h):
            assignments = self._assignments
            mean = self._h.new_empty(self.dictionary.num_codes, dtype=self._result_dtype)
            for start, stop, codes in chunks(self._h, self.dictionary):
                mean[start:stop] = assignments.probabilities(assignments.lead(start, stop, codes)).mean(0)
            return mean

    def code_sums(self, beta: float, prior: str, prior_probs: Tensor | None, need_grad: bool) -> tuple[Tensor, Tensor]:
        """(scalars `(ROW_SCALARS, 2 n)`, prior): this range's share of the sums over codes, to be added over ranges.

        The first scalar is `sum_j p_ij log(c p'_ij)`, p' of the same image's other view; the prior is both views'.
        """
        with exact(self._h):
            h, rows, dtype = self._h, self._h.shape[0] // 2, precise(self._h.device)
            assignments, total_codes = self._assignments, self.dictionary.total_codes
            self._beta = beta
            # B and E without the best codes.
            self._expected, self._pull = (torch.zeros_like(h, dtype=dtype) for _ in range(2))
            cross_term, mass, weight_sum, log_at_best, prior_at_best = h.new_zeros(5, 2 * rows, dtype=dtype)
            prior_sum = h.new_zeros((), dtype=dtype)
            for start, stop, codes in chunks(h, self.dictionary):
                lead = assignments.lead(start, stop, codes)
                # log(c p): what is the same for all codes cancels, and log p would keep fewer digits of the rest.
                log_p = assignments.log(lead, math.log(total_codes))
                p = assignments.probabilities(lead)
                q = None if prior_probs is None else prior_probs[start:stop].to(h)
                value, weight = _prior_chunk(log_p.view(2, rows, -1), p.view(2, rows, -1), prior, q, total_codes)
                weight, partner_log_p = weight.reshape(2 * rows, -1), _partner(log_p)
                prior_at_best = assignments.set_aside(start, stop, weight, prior_at_best)
                assignments.set_aside(start, stop, p, mass)
                log_at_best = assignments.set_aside(start, stop, partner_log_p, log_at_best)
                prior_sum += value
                pull = p * partner_log_p
                cross_term += pull.sum(1)
                if need_grad:
                    weight.sub_(pull, alpha=beta)
                    mass += p.sum(1)
                    weight_sum += weight.sum(1)
                    add_products(self._expected, p, codes)
                    add_products(self._pull, weight, codes)
            # Where the best code is another range's, its p counts there.
            self._best_p = torch.where(assignments.code >= 0, assignments.best_p, 0)
            at_best = self._best_p * log_at_best
            return torch.stack([cross_term + at_best, mass, weight_sum, prior_at_best - beta * at_best]), prior_sum

    def gradients(self, scalars: Tensor) -> Tensor:
        """This range's share of dL/dh of all rows, `(2 n, f)`, given the scalars of all ranges."""
        with exact(self._h):
            _, mass, weight_sum, best_weight = scalars
            mine = self._assignments.code >= 0
            own_weight = torch.where(mine, best_weight, 0)[:, None]
            # Divided by the sum of the rounded p: `sum_j x_j (w_j - B)` needs weights that sum to 1 where codes share
            # mass.
            expected = self._expected + self._best_p[:, None] * self._best_code
            expected /= (mass + self._assignments.best_p)[:, None]
            # sigma - beta t is the sum of the weights.
            grad = self._pull + own_weight * self._best_code - (weight_sum + best_weight)[:, None] * expected
            grad += self._beta * (expected - _partner(expected))
            return (grad / (self._h.shape[0] * self.temperature)).to(self._result_dtype)


def _prior_chunk(log_p: Tensor, p: Tensor, prior: str, q: Tensor | None, total_codes: int) -> tuple[Tensor, Tensor]:
    """One chunk's share of both views' prior terms, and the weights `p_ij g_j`.

    `log_p`, `p` are (2, n, chunk), and `log_p` is log(c p): near uniform both terms of `log p - log q` are large.
    """
    rows, dtype = p.shape[1], precise(p.device)
    if prior == "reverse_kl":
        mean = p.mean(1)
        # Where a mean underflows, p is 0 in every row and the term is 0: any finite g will do.
        g = (mean.clamp_min(torch.finfo(p.dtype).tiny) * total_codes).log()
        if q is not None:
            g -= (q * total_codes).log()
        return (mean * g).sum(dtype=dtype), p * g[:, None, :]
    # Of the mean where no row's share of it can have underflowed: log p is rounded where p is about 1.
    mean = p.mean(1)
    log_mean = torch.where(mean > 1e-30, (mean * total_codes).log(), torch.logsumexp(log_p, 1) - math.log(rows))
    q = p.new_full((p.shape[2],), 1 / total_codes) if q is None else q
    value = 2 * math.log(total_codes) * q.sum(dtype=dtype) - (q * log_mean).sum(dtype=dtype)
    # g_j = 1 - q_j / mean_j, the 1 because near the optimum all ratios are: what all codes share cancels. A large ratio
    # overflows on aligned codes; only its product is formed, p_ij q_j / mean_j = q_j exp(log p_ij - log mean_j).
    log_ratio = (q * total_codes).log() - log_mean
    large = log_ratio > 1
    weight = p * torch.where(large, 1, -log_ratio.expm1())[:, None, :]
    return value, weight - torch.where(large, q, 0)[:, None, :] * (log_p - log_mean[:, None, :]).exp()


def _partner(rows: Tensor) -> Tensor:
    """The same images' rows in the other view, for an array whose first half is view 1 and second half view 2."""
    return rows.view(2, rows.shape[0] // 2, -1).flip(0).reshape(rows.shape)
