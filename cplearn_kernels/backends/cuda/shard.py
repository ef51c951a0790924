"""The steps of the loss on one range of codes, between which ranks combine numbers, with the kernels of csrc/cuda.

Pass 1 finds each row's best code of the range; pass 2 makes the range's share of every sum over codes, and of p̄, from
the rows' best logits and sums over the codes of all ranges. The formulas are those of `reference.cplearn_loss` and
docs/mathematics.md; a row's best code is put back into the sums by the range that holds it.
"""

from __future__ import annotations

import math

import torch

from ...dictionary import Dictionary
from .launch import PRIOR_NUMBERS, address, call, prior_probs_of

_ELSEWHERE = -1  # csrc/cuda/arguments.h, kElsewhere


class Shard:
    """One range of codes against the rows of all ranks.

    Args:
        dictionary: the range, or a whole dictionary.
        temperature: as in `cplearn_loss`.
        num_views: 2 for the loss, 1 for `mean_assignment`.
    """

    LOG_UNIT = math.log(2)  # logits are in powers of two
    # Per row: the agreement; without the best code, the sums of p and of the gradient's weights; at the best code, the
    # prior's part of its weight and the partner's log2(c p).
    ROW_SCALARS = 5

    def __init__(self, dictionary: Dictionary, temperature: float, num_views: int):
        self._dictionary, self._temperature = dictionary, temperature
        self._views: list[torch.Tensor | None] = [None] * num_views
        self._found: list[torch.Tensor | None] = [None] * num_views

    def row_sums(self, view: int, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(best, others) of one view's rows, float64 `(n,)`: the largest logit and `sum 2^(s - best)` of the rest."""
        h = h.detach()
        best, others = torch.empty(2, h.shape[0], dtype=torch.float64, device=h.device)
        code = torch.empty(h.shape[0], dtype=torch.int32, device=h.device)
        call("row_sums", [h], self._dictionary, self._temperature, _addresses(best, others, code))
        self._views[view], self._found[view] = h, code
        return best, others

    def combine(self, best: torch.Tensor, others: torch.Tensor, mine: torch.Tensor) -> None:
        """What all ranges know of all rows, `(num_views * n,)`; `mine`: where the best code is one of this range's."""
        code = torch.cat(self._found).masked_fill_(~mine, _ELSEWHERE)
        self._known = best.contiguous(), others.contiguous(), code

    def mean_assignment(self) -> torch.Tensor:
        """p̄ of the range's codes over all rows of the one view."""
        (h,) = self._views
        out = torch.empty(self._dictionary.num_codes, dtype=torch.float32, device=h.device)
        call(
            "mean_assignment_of_range", [h], self._dictionary, self._temperature, _addresses(*self._known),
            out.data_ptr(),
        )  # fmt: skip
        return out

    def code_sums(self, beta, prior, prior_probs, need_grad) -> tuple[torch.Tensor, torch.Tensor]:
        """(scalars `(ROW_SCALARS, 2 n)`, prior): the range's share of the sums over codes, to be added over ranges.

        The first scalar is `sum_j p_ij log(c p'_ij)`, p' of the same image's other view; the prior is both views'.
        """
        (n, f), device = self._views[0].shape, self._views[0].device
        scalars = torch.empty(self.ROW_SCALARS, 2 * n, dtype=torch.float64, device=device)
        prior_sum = torch.empty((), dtype=torch.float64, device=device)
        # E and B without the best codes.
        self._sums = torch.empty(2, 2 * n, f, dtype=torch.float64, device=device) if need_grad else None
        self._beta, prior_probs = beta, prior_probs_of(prior_probs)
        call(
            "code_sums", self._views, self._dictionary, self._temperature, beta, PRIOR_NUMBERS[prior],
            address(prior_probs), _addresses(*self._known), scalars.data_ptr(), prior_sum.data_ptr(),
            address(self._sums),
        )  # fmt: skip
        return scalars, prior_sum

    def gradients(self, scalars: torch.Tensor) -> torch.Tensor:
        """The range's share of dL/dh of all rows, `(2 n, f)`, given the scalars of all ranges."""
        (n, f), scalars = self._views[0].shape, scalars.contiguous()
        grad = torch.empty(2 * n, f, dtype=torch.float32, device=scalars.device)
        call(
            "gradients", self._views, self._dictionary, self._temperature, self._beta, _addresses(*self._known),
            scalars.data_ptr(), self._sums.data_ptr(), grad.data_ptr(),
        )  # fmt: skip
        return grad


def _addresses(*tensors: torch.Tensor) -> tuple[int, ...]:
    return tuple(tensor.data_ptr() for tensor in tensors)
