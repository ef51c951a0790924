"""The steps of the loss on one range of codes, between which ranks combine numbers, with the kernels of csrc/cpu."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...dictionary import Dictionary
from ...options import PRIORS
from ..arguments import address, addresses, as_float32, prior_as_float32
from . import launch
from .launch import call, codes_of


class Shard:
    """See `interface.Shard`."""

    LOG_UNIT = math.log(2)  # logits are in powers of two
    ROW_SCALARS: int = launch.core.row_scalars if launch.core else 0

    def __init__(self, dictionary: Dictionary, temperature: float, num_views: int) -> None:
        self._codes, self._temperature, self._num_codes = codes_of(dictionary), temperature, dictionary.num_codes
        # One instruction set for all steps: others round a row's best logit differently.
        self._target = launch.target
        self._views: list[Any] = [None] * num_views
        self._found: list[Any] = [None] * num_views

    def row_sums(self, view: int, h: Tensor) -> tuple[Tensor, Tensor]:
        h = as_float32(h)
        best, others = torch.empty(2, h.shape[0], dtype=torch.float64)
        code = torch.empty(h.shape[0], dtype=torch.int64)
        self._call("row_sums", h.data_ptr(), h.shape[0], self._temperature, addresses(best, others, code))
        self._views[view], self._found[view] = h, code
        return best, others

    def combine(self, best: Tensor, others: Tensor, mine: Tensor) -> None:
        code = torch.cat(self._found).masked_fill_(~mine, -1)
        self._known = best.contiguous(), others.contiguous(), code

    def mean_assignment(self) -> Tensor:
        (h,) = self._views
        if not torch.isfinite(h).all():
            return h.new_full((self._num_codes,), torch.nan)
        out = h.new_empty(self._num_codes)
        self._call(
            "shard_mean_assignment", h.data_ptr(), h.shape[0], addresses(*self._known), self._temperature,
            out.data_ptr(),
        )  # fmt: skip
        return out

    def code_sums(self, beta: float, prior: str, prior_probs: Tensor | None, need_grad: bool) -> tuple[Tensor, Tensor]:
        h1, h2 = self._views
        n, prior_probs = h1.shape[0], prior_as_float32(prior_probs)
        size = launch.core.shard_size(self._target, self._codes, n) if need_grad else 0
        self._beta, self._sums = beta, torch.empty(2, size, dtype=torch.float64)
        scalars = torch.empty(self.ROW_SCALARS, 2 * n, dtype=torch.float64)
        prior_value = self._call(
            "shard_sums", h1.data_ptr(), h2.data_ptr(), n, addresses(*self._known), self._temperature, beta,
            PRIORS.index(prior), address(prior_probs), scalars.data_ptr(), *addresses(*self._sums),
        )  # fmt: skip
        return scalars, torch.tensor(prior_value, dtype=torch.float64)

    def gradients(self, scalars: Tensor) -> Tensor:
        scalars = scalars.contiguous()
        n, f = self._views[0].shape
        grad = torch.empty(2 * n, f)
        self._call(
            "shard_gradients", n, addresses(*self._known), self._temperature, self._beta, scalars.data_ptr(),
            *addresses(*self._sums), grad.data_ptr(),
        )  # fmt: skip
        return grad

    def _call(self, name: str, *arguments: Any) -> Any:
        return call(name, self._codes, *arguments, instructions=self._target)
