"""Codes by chunks through torch's own GEMM: pass 1 for every function, and the steps of a loss over a range of codes.

Formulas and gradients are those of docs/mathematics.md. Memory is O((n + f) * chunk), whatever c is.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...dictionary import Dictionary
from ...options import result_dtype

# Elements that the arrays of one chunk may have together; about 16 MiB each in float32.
_CHUNK_ELEMENTS = 1 << 22


class Shard:
    """One range of codes against all rows: the steps of a loss between which ranks combine numbers (`distributed`).

    Pass 1 (`row_sums`) finds each row's best code and sum; pass 2 (`code_sums`) sees all rows of a chunk of codes at
    once, so that p̄ is complete there and the gradient's weights can be formed and summed without keeping anything of
    size c. What a row's best code contributes is set aside and added in float64 at the end: near the optimum it is
    nearly all of B and E, and cancels down to the small rest that the other codes give.
    """

    LOG_UNIT = 1.0
    # The cross term; without the best code: sum of p, sum of the weights; the best code's weight.
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
            dtype = precise(h.device)
            return sums.best.to(dtype), sums.others.to(dtype)

    def combine(self, best: Tensor, others: Tensor, mine: Tensor) -> None:
        """Take the values of all codes, `(views * n,)`; `mine`: whether the row's best code lies in this range."""
        self._rows = [sums.scaled for sums in self._views]
        self._h = torch.cat(self._rows)
        self._best, self._others = best.to(self._h), others.to(self._h)
        self._code = torch.where(mine, torch.cat([sums.code for sums in self._views]), -1)
        self._views.clear()

    def keep_row_sums(self, *views: Tensor) -> None:
        """`row_sums` of all views at once and `combine`, where one range is all there is."""
        h = torch.cat(views)
        with exact(h):
            self._result_dtype = result_dtype(h)
            sums = RowSums(scaled_rows(h, self.dictionary, self.temperature), self.dictionary)
            self._h, self._rows = sums.scaled, [sums.scaled]
            self._best, self._others, self._code = sums.best, sums.others, sums.code

    def mean_assignment(self) -> Tensor:
        """p̄ of the range's codes over all rows of the one view."""
        with exact(self._h):
            mean = self._h.new_empty(self.dictionary.num_codes, dtype=self._result_dtype)
            for start, stop, codes in chunks(self._h, self.dictionary):
                mean[start:stop] = (self._lead(codes).exp_() / (1 + self._others)[:, None]).mean(0)
            return mean

    def code_sums(self, beta: float, prior: str, prior_probs: Tensor | None, need_grad: bool) -> tuple[Tensor, Tensor]:
        """(scalars `(ROW_SCALARS, 2 n)`, prior): this range's share of the sums over codes, to be added over ranges.

        The first scalar is `sum_j p_ij log(c p'_ij)`, p' of the same image's other view; the prior is both views'.
        """
        with exact(self._h):
            self._beta, h, rows = beta, self._h, self._h.shape[0] // 2
            log_sum, log_total = self._others.log1p(), math.log(self.dictionary.total_codes)
            self._expected, self._pull = torch.zeros_like(h), torch.zeros_like(h)  # B, E without the best codes
            mass, weight_sum, cross_term = (h.new_zeros(2 * rows) for _ in range(3))
            prior_sum = h.new_zeros(())
            self._set_aside = best = _BestCodes(self._code, self._others, h)
            for start, stop, codes in chunks(h, self.dictionary):
                lead = self._lead(codes)
                log_p = lead - log_sum[:, None]
                p = lead.exp_() / (1 + self._others)[:, None]
                partner_log_p = _partner(log_p)
                q = None if prior_probs is None else prior_probs[start:stop].to(h)
                value, prior_weight = _prior_chunk(
                    log_p.view(2, rows, -1), p.view(2, rows, -1), prior, q, self.dictionary.total_codes
                )
                prior_weight = prior_weight.reshape(2 * rows, -1)
                best.set_aside(start, stop, codes, prior_weight, p, partner_log_p)
                prior_sum += value
                cross_term += (p * (partner_log_p + log_total)).sum(1)
                if need_grad:
                    weight = prior_weight.addcmul_(p, partner_log_p, value=-beta)
                    mass += p.sum(1)
                    weight_sum += weight.sum(1)
                    self._expected.addmm_(p, codes.T)
                    self._pull.addmm_(weight, codes.T)
            # Where the best code is another range's, its p counts there.
            at_best = torch.where(best.index >= 0, best.p * (best.partner_log_p + log_total), 0)
            best_weight = torch.where(best.index >= 0, best.prior_weight - beta * best.p * best.partner_log_p, 0)
            scalars = torch.stack(
                [cross_term.to(best.dtype) + at_best, mass.to(best.dtype), weight_sum.to(best.dtype), best_weight]
            )
            return scalars, prior_sum.to(best.dtype)

    def gradients(self, scalars: Tensor) -> Tensor:
        """This range's share of dL/dh of all rows, `(2 n, f)`, given the scalars of all ranges."""
        with exact(self._h):
            _, mass, weight_sum, best_weight = scalars
            best, mine = self._set_aside, self._set_aside.index >= 0
            p, own_weight = (torch.where(mine, value, 0)[:, None] for value in (best.p, best_weight))
            # Divided by the sum of the rounded p: `sum_j x_j (w_j - B)` needs weights that sum to 1 where codes share
            # mass.
            expected = (self._expected + p * best.code) / (mass + best.p)[:, None]
            pull = self._pull + own_weight * best.code
            # sigma - beta t is the sum of the weights.
            grad = pull - (weight_sum + best_weight)[:, None] * expected
            grad += self._beta * (expected - _partner(expected))
            return (grad / (self._h.shape[0] * self.temperature)).to(self._result_dtype)

    def _lead(self, codes: Tensor) -> Tensor:
        # In the parts of pass 1: a product of another shape may round another way, and the best code's lead is 0.
        return torch.cat([h @ codes.to(h) for h in self._rows]) - self._best[:, None]


class RowSums:
    """Pass 1: each row's best logit m, its code, and the sum of exp(s - m) over the other codes.

    Kept apart, because `1 + tiny` and one rounded log-sum-exp both cost the digits that count near the optimum.
    """

    def __init__(self, scaled: Tensor, dictionary: Dictionary, rows: int | None = None) -> None:
        self.scaled = scaled
        self.best = scaled.new_full((scaled.shape[0],), -math.inf)
        self.others = torch.zeros_like(self.best)
        self.code = torch.zeros_like(self.best, dtype=torch.int64)
        for start, _, codes in chunks(scaled, dictionary, rows):
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

    def __init__(self, code: Tensor, others: Tensor, h: Tensor) -> None:
        self.dtype = precise(h.device)
        self.index = code  # -1: not among these codes
        self.p = 1 / (1 + others.to(self.dtype))
        self.prior_weight, self.partner_log_p = torch.zeros_like(self.p), torch.zeros_like(self.p)
        self.code = torch.zeros_like(h)

    def set_aside(
        self, start: int, stop: int, codes: Tensor, prior_weight: Tensor, p: Tensor, partner_log_p: Tensor
    ) -> None:
        """Note the entries of the best codes that lie in this chunk, and zero them in `prior_weight` and `p`."""
        here = (self.index >= start) & (self.index < stop)
        column = (self.index - start).clamp(0, stop - start - 1)[:, None]
        self.prior_weight = torch.where(here, prior_weight.gather(1, column)[:, 0].to(self.dtype), self.prior_weight)
        self.partner_log_p = torch.where(here, partner_log_p.gather(1, column)[:, 0].to(self.dtype), self.partner_log_p)
        self.code = torch.where(here[:, None], codes[:, column[:, 0]].T, self.code)
        for weights in (prior_weight, p):
            weights.scatter_(1, column, weights.gather(1, column).masked_fill(here[:, None], 0))


def _prior_chunk(log_p: Tensor, p: Tensor, prior: str, q: Tensor | None, total_codes: int) -> tuple[Tensor, Tensor]:
    """One chunk's share of both views' prior terms, and the weights `p_ij g_j`; `log_p`, `p` are (2, n, chunk)."""
    rows = p.shape[1]
    log_uniform = -math.log(total_codes)
    if prior == "reverse_kl":
        mean = p.mean(1)
        # Where a mean underflows, p is 0 in every row and the term is 0: any finite g will do.
        g = mean.clamp_min(torch.finfo(p.dtype).tiny).log() - (log_uniform if q is None else q.log())
        return (mean * g).sum(), p * g[:, None, :]
    # p_ij g_j = -q_j exp(log p_ij - log mean_j), never through g = -q / mean, which overflows on aligned codes.
    log_mean = torch.logsumexp(log_p, 1) - math.log(rows)
    weight = math.exp(log_uniform) if q is None else q
    return -(weight * log_mean).sum(), -weight * (log_p - log_mean[:, None, :]).exp()


def _partner(rows: Tensor) -> Tensor:
    """The same images' rows in the other view, for an array whose first half is view 1 and second half view 2."""
    return rows.view(2, rows.shape[0] // 2, -1).flip(0).reshape(rows.shape)


def chunks(scaled: Tensor, dictionary: Dictionary, rows: int | None = None) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (start, stop, codes) over all codes; chunks are powers of two, so they cut no Hadamard block askew.

    `rows`: how many rows meet a chunk, if others than those of `scaled`.
    """
    size = max(256, _CHUNK_ELEMENTS // ((rows or scaled.shape[0]) + dictionary.num_features))
    size = 1 << (size.bit_length() - 1)
    for start in range(0, dictionary.num_codes, size):
        stop = min(start + size, dictionary.num_codes)
        yield start, stop, dictionary.to_dense(start, stop, dtype=scaled.dtype, device=scaled.device)


def scaled_rows(h: Tensor, dictionary: Dictionary, temperature: float) -> Tensor:
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


def precise(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


@contextlib.contextmanager
def exact(h: Tensor) -> Iterator[None]:
    """No autograd and no autocast: the products below must keep the precision that the caller was promised."""
    with torch.no_grad(), torch.autocast(h.device.type, enabled=False):
        yield
