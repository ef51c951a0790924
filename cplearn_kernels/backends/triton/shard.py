"""The steps of the Triton backend's loss over a range of codes, between which ranks that share the codes add numbers.

With one range, the whole dictionary, these are the steps of `functions.cplearn_loss`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...dictionary import Dictionary
from ..arguments import prior_as_float32
from .codes import codes_of
from .kernels import constants
from .launches import LOG2_E, Batch
from .sums import Weights, weighted_codes

_MODES = {"reverse_kl": constants.REVERSE_KL.value, "cross_entropy": constants.CROSS_ENTROPY.value}


class Shard:
    """See `interface.Shard`."""

    LOG_UNIT = math.log(2)  # logits are in powers of two
    ROW_SCALARS = constants.NUM_ROW_SUMS  # the row sums of kernels/constants.py

    def __init__(self, dictionary: Dictionary, temperature: float, num_views: int) -> None:
        self._dictionary, self._temperature, self._num_views = dictionary, temperature, num_views
        self._factor = LOG2_E / temperature

    def row_sums(self, view: int, h: Tensor) -> tuple[Tensor, Tensor]:
        """As in `interface.Shard`, of view 0's rows first."""
        if view == 0:
            self._batch = self._new_batch([h])
        else:
            self._batch.prepare(view, [h.detach()], [self._factor])
        batch = self._batch
        batch.search_best(view)
        rows = slice(view * batch.n_pad, view * batch.n_pad + batch.n)
        # 0, or NaN where the row is not finite.
        mark = 0 * batch.rows[constants.SCALE.value, rows]
        return batch.best[rows].double() + mark, batch.others[rows] + mark

    def take_whole(self, h1: Tensor, h2: Tensor) -> None:
        """`row_sums` of both views and `combine` where no other rank has codes, in fewer launches."""
        self._batch = self._new_batch([h1, h2])
        self._batch.find_best()

    def combine(self, best: Tensor, others: Tensor, mine: Tensor) -> None:
        self._batch.combine(best, others, mine)

    def mean_assignment(self) -> Tensor:
        return self._batch.mean_assignment()

    def code_sums(self, beta: float, prior: str, prior_probs: Tensor | None, need_grad: bool) -> tuple[Tensor, Tensor]:
        mode, prior_probs = _MODES[prior], prior_as_float32(prior_probs)
        batch = self._batch
        state, prior_terms = batch.empty_state(), []
        for start, length in batch.spans():
            slopes, prior_term = batch.columns(start, length, mode, prior_probs)
            prior_terms.append(prior_term)
            batch.row_sums(state, start, length, slopes, mode, prior_probs)
        batch.add_cross_term(state)
        # Kept where all codes are one span; of several, each span's are made again.
        self._slopes = slopes if need_grad and len(prior_terms) == 1 else None
        self._weights = Weights(mode, self._slopes_of, beta, prior_probs)
        return state, torch.stack(prior_terms).sum()

    def gradients(self, scalars: Tensor) -> Tensor:
        out = self._batch.empty(2 * self._batch.n, self._dictionary.num_features)
        self.write_gradients(scalars, list(out.chunk(2)))
        return out

    def write_gradients(self, scalars: Tensor, out: list[Tensor]) -> None:
        """As `gradients`, into an `(N, f)` array per view."""
        batch = self._batch
        share = batch.finish_row_sums(scalars.contiguous(), self._weights.beta)
        sums = weighted_codes(batch, self._weights)
        batch.finish_sums(sums, share, 1 / (2 * batch.n * self._temperature), out)

    def _slopes_of(self, start: int, length: int) -> Tensor:
        if self._slopes is not None:
            return self._slopes
        return self._batch.columns(start, length, self._weights.mode, self._weights.prior_probs)[0]

    def _new_batch(self, views: list[Tensor]) -> Batch:
        views = [view.detach() for view in views]
        codes = codes_of(self._dictionary, views[0].device)
        return Batch(views, codes, [self._factor] * len(views), self._num_views)
