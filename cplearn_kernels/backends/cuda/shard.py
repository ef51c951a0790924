"""The steps of the loss on one range of codes, between which ranks combine numbers, with the kernels of csrc/cuda.

Pass 1 finds each row's best code of the range; pass 2 makes the range's share of every sum over codes, and of p̄, from
the rows' best logits and sums over the codes of all ranges. The formulas are those of `reference.cplearn_loss` and
docs/mathematics.md; a row's best code is put back into the sums by the range that holds it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...dictionary import Dictionary
from ...options import PRIORS
from ..arguments import address, addresses, prior_as_float32
from .launch import call

_ELSEWHERE = -1  # csrc/formulas.h, kElsewhere


class Shard:
    """See `interface.Shard`."""

    LOG_UNIT = math.log(2)  # logits are in powers of two
    # Per row: the cross term; without the best code, the sums of p and of the gradient's weights; at the best code, the
    # prior's part of its weight and the partner's log2(c p).
    ROW_SCALARS = 5

    def __init__(self, dictionary: Dictionary, temperature: float, num_views: int) -> None:
        self._dictionary, self._temperature = dictionary, temperature
        self._views: list[Any] = [None] * num_views
        self._found: list[Any] = [None] * num_views

    def row_sums(self, view: int, h: Tensor) -> tuple[Tensor, Tensor]:
        h = h.detach()
        best, others = torch.empty(2, h.shape[0], dtype=torch.float64, device=h.device)
        code = torch.empty(h.shape[0], dtype=torch.int32, device=h.device)
        call("row_sums", [h], self._dictionary, self._temperature, addresses(best, others, code))
        self._views[view], self._found[view] = h, code
        return best, others

    def combine(self, best: Tensor, others: Tensor, mine: Tensor) -> None:
        code = torch.cat(self._found).masked_fill_(~mine, _ELSEWHERE)
        self._known = best.contiguous(), others.contiguous(), code

    def mean_assignment(self) -> Tensor:
        (h,) = self._views
        out = torch.empty(self._dictionary.num_codes, dtype=torch.float32, device=h.device)
        call(
            "mean_assignment_of_range", [h], self._dictionary, self._temperature, addresses(*self._known),
            out.data_ptr(),
        )  # fmt: skip
        return out

    def code_sums(self, beta: float, prior: str, prior_probs: Tensor | None, need_grad: bool) -> tuple[Tensor, Tensor]:
        (n, f), device = self._views[0].shape, self._views[0].device
        scalars = torch.empty(self.ROW_SCALARS, 2 * n, dtype=torch.float64, device=device)
        prior_sum = torch.empty((), dtype=torch.float64, device=device)
        # E and B without the best codes.
        self._sums = torch.empty(2, 2 * n, f, dtype=torch.float64, device=device) if need_grad else None
        self._beta, prior_probs = beta, prior_as_float32(prior_probs)
        call(
            "code_sums", self._views, self._dictionary, self._temperature, beta, PRIORS.index(prior),
            address(prior_probs), addresses(*self._known), scalars.data_ptr(), prior_sum.data_ptr(),
            address(self._sums),
        )  # fmt: skip
        return scalars, prior_sum

    def gradients(self, scalars: Tensor) -> Tensor:
        (n, f), scalars = self._views[0].shape, scalars.contiguous()
        grad = torch.empty(2 * n, f, dtype=torch.float32, device=scalars.device)
        call(
            "gradients", self._views, self._dictionary, self._temperature, self._beta, addresses(*self._known),
            scalars.data_ptr(), address(self._sums), grad.data_ptr(),
        )  # fmt: skip
        return grad
