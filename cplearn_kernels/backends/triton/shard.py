"""The steps of the Triton backend's loss over a range of codes, between which ranks that share the codes add numbers.

With one range, the whole dictionary, these are the steps of `functions.cplearn_loss`.
"""

from __future__ import annotations

import math

import torch

from ...dictionary import Dictionary
from .batch import LOG2_E, Batch
from .codes import codes_of
from .kernels.constants import CROSS_ENTROPY, REVERSE_KL
from .kernels.passes import SCALE
from .kernels.rows import NUM_ROW_SUMS
from .sums import weighted_codes


class Shard:
    """One range of codes against all rows of the group, N of each view.

    Ranks call `row_sums` per view, find each row's best code and the sum over the others among all ranks' results, hand
    these to `combine`, call `code_sums`, add its scalars over the ranks, and call `gradients`; the sum of the ranks'
    gradients is that of the loss.

    Args:
        dictionary: the range, or a whole dictionary.
        temperature: what products are divided by.
        num_views: 2 for the loss, 1 for `mean_assignment`.
    """

    LOG_UNIT = math.log(2)  # nats per unit of the logits that `row_sums` returns: they are in powers of two
    ROW_SCALARS = NUM_ROW_SUMS

    def __init__(self, dictionary: Dictionary, temperature: float, num_views: int):
        self._dictionary, self._temperature, self._num_views = dictionary, temperature, num_views
        self._factor = LOG2_E / temperature

    def row_sums(self, view: int, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(largest logit, sum of 2^(logit - largest) over the other codes) of view 0's rows, then of view 1's.

        Each `(N,)` float64; NaN where the row is not finite.
        """
        if view == 0:
            self._batch = self._new_batch([h])
        else:
            self._batch.prepare(view, [h.detach()], [self._factor])
        batch = self._batch
        batch.search_best(view)
        rows = slice(view * batch.n_pad, view * batch.n_pad + batch.n)
        # 0, or NaN where the row is not finite.
        mark = 0 * batch.rows[SCALE.value, rows]
        return batch.best[rows].double() + mark, batch.others[rows] + mark

    def take_whole(self, h1: torch.Tensor, h2: torch.Tensor) -> None:
        """`row_sums` of both views and `combine` where no other rank has codes, in fewer launches."""
        self._batch = self._new_batch([h1, h2])
        self._batch.find_best()

    def combine(self, best: torch.Tensor, others: torch.Tensor, mine: torch.Tensor) -> None:
        """Takes the values of all codes, `(num_views * N,)` each; `mine`: whether this range found the best one."""
        self._batch.combine(best, others, mine)

    def mean_assignment(self) -> torch.Tensor:
        """`(num_codes,)` float32: p̄ of the range's codes."""
        return self._batch.mean_assignment()

    def code_sums(
        self, beta: float, prior: str, prior_probs: torch.Tensor | None, need_grad: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(the row sums of kernels/rows.py over the range, (ROW_SCALARS, 2N), the prior's terms of both views), float64.

        Row 0 of the scalars is the sum of p ln(total_codes p'). `prior_probs` are those of the range.
        """
        mode = {"reverse_kl": REVERSE_KL, "cross_entropy": CROSS_ENTROPY}[prior]
        if prior_probs is not None:
            prior_probs = prior_probs.to(torch.float32).contiguous()
        batch = self._batch
        state, prior_terms = batch.empty_state(), []
        for start, length in batch.spans():
            slopes, prior_term = batch.columns(start, length, mode, prior_probs)
            prior_terms.append(prior_term)
            batch.row_sums(state, start, length, slopes, mode, prior_probs)
        batch.add_agreement(state)
        # Kept where all codes are one span; of several, each span's are made again.
        self._slopes = slopes if need_grad and len(prior_terms) == 1 else None
        self._beta, self._mode, self._prior_probs = beta, mode, prior_probs
        return state, torch.stack(prior_terms).sum()

    def gradients(self, scalars: torch.Tensor) -> torch.Tensor:
        """`(2N, f)` float32: the range's share of dL/dh, from the scalars summed over all ranges."""
        out = self._batch.empty(2 * self._batch.n, self._dictionary.num_features)
        self.write_gradients(scalars, list(out.chunk(2)))
        return out

    def write_gradients(self, scalars: torch.Tensor, out: list[torch.Tensor]) -> None:
        """As `gradients`, into an `(N, f)` array per view."""
        batch = self._batch

        def slopes_of(start, length):
            if self._slopes is not None:
                return self._slopes
            return batch.columns(start, length, self._mode, self._prior_probs)[0]

        share = batch.finish_row_sums(scalars.contiguous(), self._beta)
        sums = weighted_codes(batch, self._mode, slopes_of, self._beta, self._prior_probs)
        batch.finish_sums(sums, share, 1 / (2 * batch.n * self._temperature), out)

    def _new_batch(self, views: list[torch.Tensor]) -> Batch:
        views = [view.detach() for view in views]
        codes = codes_of(self._dictionary, views[0].device)
        return Batch(views, codes, [self._factor] * len(views), self._num_views)
