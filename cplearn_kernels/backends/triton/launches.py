"""The passes over all codes for one batch: buffers, grids and the order of the Triton kernels' launches.

Memory is O(n f + 2^22): codes go by in spans of at most 2^22, whose column sums are kept while their span is worked on.
Nothing here waits for the device, so that calls can be captured in a CUDA graph.
"""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from . import tuning
from .codes import Codes
from .kernels import constants, passes, weighted_sums
from .kernels import rows as kernels
from .pieces import Pieces

LOG2_E: float = constants.LOG2_E.value
_BEST: int = constants.BEST.value
_CENTRE: int = constants.CENTRE.value
_CROSS_ENTROPY: int = constants.CROSS_ENTROPY.value
_MAX_ROWS = 128
_BLOCK = 128


class Batch(Pieces):
    """The rows of one view or two, prepared for the kernels, and the passes over all codes that they need.

    Args:
        views: one or two `(n, f)` tensors of the same shape, any strides.
        codes: the dictionary as kernel arguments.
        factors: what each view is multiplied with: log2(e) / temperature for logits in powers of two.
        num_views: how many views there will be (default: those of `views`); the others come by `prepare`.
    """

    def __init__(self, views: list[Tensor], codes: Codes, factors: list[float], num_views: int | None = None) -> None:
        super().__init__(codes, views[0].device)
        self.n, self.views = views[0].shape[0], num_views or len(views)
        self.arch = tuning.architecture(self.device)
        self.n_pad = -(-self.n // _MAX_ROWS) * _MAX_ROWS if self.n > 64 else max(16, 1 << (self.n - 1).bit_length())
        self.total = self.n_pad * self.views
        self.processors = _processors(self.device)
        self._at_best: Tensor | None = None
        # Padding: rows of zeros with scale 1.
        self.high = self.zeros(self.total, codes.width, dtype=torch.float16)
        self.low = torch.zeros_like(self.high)
        self.rows = torch.ones(constants.NUM_CONSTANTS, self.total, device=self.device)
        self.best = self.empty(self.total)
        self.others = self.empty(self.total, dtype=torch.float64)
        self.code = self.empty(self.total, dtype=torch.int32)
        self.prepare(0, views, factors)

    def prepare(self, first_view: int, views: list[Tensor], factors: list[float]) -> None:
        """The rows of views, `first_view` and up, as the kernels take them."""
        codes, start = self.codes, first_view * self.n_pad
        first, second = views[0], views[-1]
        with self.on_device():
            kernels.prepare_rows[(self.n, len(views))](
                first, second, codes.coordinates, self.high[start:], self.low[start:], self.rows[:, start:], self.n_pad,
                self.total, first.stride(0), first.stride(1), second.stride(0), second.stride(1), factors[0],
                factors[-1], codes.width, BLOCK=triton.next_power_of_2(codes.width),
            )  # fmt: skip

    # ---- passes ----

    def find_best(self, view: int | None = None) -> None:
        """Each row's best code and the sum over the others, then the constants that make probabilities of logits.

        Given a view, the rows of another one are left alone: they only lend their products.
        """
        self.search_best(view)
        self.set_constants(view)

    def search_best(self, view: int | None = None) -> None:
        """`best`, `others` and `code` of all rows, or of those of one view."""
        config, codes = self.config("best_codes"), self.codes
        start_row, count = self._rows_of(view)
        high, low, rows = self.high[start_row:], self.low[start_row:], self.rows[:, start_row:]
        found = [array[start_row:] for array in (self.best, self.others, self.code)]
        for start, span, table in self.pieces():
            splits, per_split = self.splits(count // config.rows, triton.cdiv(span, config.codes))
            parts = [self.empty(splits, self.total, dtype=array.dtype) for array in found]
            with self.on_device():
                passes.best_codes[(count // config.rows, splits)](
                    high, low, rows, *parts, table, codes.words, self.total, start, span, per_split,
                    **self.shape(config), **launch_options(config),
                )  # fmt: skip
                kernels.merge_best[(triton.cdiv(count, _BLOCK),)](
                    *parts, *found, count, self.total, splits, FIRST=start == 0, BLOCK=_BLOCK
                )

    def combine(self, best: Tensor, others: Tensor, mine: Tensor) -> None:
        """Takes what holds for all codes, `(views * n,)` each, in place of what holds for these.

        `code` becomes -1 where the best code is not `mine`: no column equals it, and nothing is looked up for it.
        """

        def without_padding(array: Tensor) -> Tensor:
            return array.view(self.views, -1)[:, : self.n]

        without_padding(self.best).copy_(best.reshape(self.views, -1))
        without_padding(self.others).copy_(others.reshape(self.views, -1))
        without_padding(self.code).masked_fill_(~mine.reshape(self.views, -1), -1)
        self.set_constants()

    def set_constants(self, view: int | None = None) -> None:
        """The row constants that follow from `best` and `others`, of all rows or of those of one view."""
        start_row, count = self._rows_of(view)
        self._at_best = None
        with self.on_device():
            kernels.row_constants[(triton.cdiv(count, _BLOCK),)](
                self.best[start_row:], self.others[start_row:], self.rows[:, start_row:], self.n, self.n_pad, count,
                self.total, math.log2(self.codes.total_codes), BLOCK=_BLOCK,
            )  # fmt: skip

    def _rows_of(self, view: int | None) -> tuple[int, int]:
        return (0, self.total) if view is None else (view * self.n_pad, self.n_pad)

    def products_at_best(self) -> Tensor:
        """`(R,)`: the partner row's logit, or second product, at each row's best code; 0 where that is -1."""
        if self._at_best is None:
            codes, self._at_best = self.codes, self.zeros(self.total)
            with self.on_device():
                kernels.products_at_best[(self.n, self.views)](
                    self.high, self.low, self.rows, self.code, self._at_best, codes.coordinates, codes.positions,
                    codes.packed, codes.packed.shape[1], codes.first_index, *codes.keys, self.n_pad, self.total,
                    codes.width, F=codes.block, KIND=codes.kind, BLOCK=triton.next_power_of_2(codes.width),
                )  # fmt: skip
        return self._at_best

    def columns(self, start: int, length: int, mode: int, prior_probs: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(slopes, prior) of a span, see rows.finish_columns: (views, length), and the float64 sum of the prior."""
        slopes = self.empty(self.views, length)
        prior = [self._column_piece(slopes, start, piece, mode, prior_probs) for piece in self.pieces(start, length)]
        return slopes, torch.stack(prior).sum()

    def mean_assignment(self) -> Tensor:
        """`(codes,)` float32: p̄ of the one view."""
        parts = [self.columns(start, length, constants.EXPECTED.value)[0][0] for start, length in self.spans()]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _column_piece(
        self, slopes: Tensor, span_start: int, piece: tuple[int, int, Tensor], mode: int, prior_probs: Tensor | None
    ) -> Tensor:
        config, codes, logs = self.config("column_sums"), self.codes, mode == _CROSS_ENTROPY
        start, count, table = piece
        tiles, row_tiles = triton.cdiv(count, config.codes), triton.cdiv(self.n, config.rows)
        splits = max(1, min(row_tiles, 64, 2 * self.processors // (tiles * self.views)))
        per_split = triton.cdiv(row_tiles, splits) * config.rows
        splits = triton.cdiv(self.n, per_split)
        sums = self.empty(splits, self.views, count)
        best = torch.empty_like(sums) if logs else sums
        blocks = triton.cdiv(count, 1024)
        prior_sums = self.zeros(self.views, blocks, dtype=torch.float64)
        prior = sums if prior_probs is None else prior_probs[start : start + count]
        with self.on_device():
            passes.column_sums[(tiles, splits, self.views)](
                self.high, self.low, self.rows, sums, best, table, codes.words, self.total, self.n, self.n_pad, count,
                per_split, LOGS=logs, **self.shape(config), **launch_options(config),
            )  # fmt: skip
            kernels.finish_columns[(blocks, self.views)](
                sums, best, prior, slopes[:, start - span_start :], prior_sums, splits, count, slopes.stride(0),
                1.0 / self.n, codes.total_codes / self.n, 1.0 / codes.total_codes, MODE=mode,
                GIVEN_PRIOR=prior_probs is not None, BLOCK=1024,
            )  # fmt: skip
        return prior_sums.sum()

    def row_sums(
        self, state: Tensor, start: int, length: int, slopes: Tensor, mode: int, prior_probs: Tensor | None = None
    ) -> None:
        """Adds a span's sums to `state`; the first span overwrites it.

        `slopes` (views, length) belongs to the span.
        """
        config, codes, pair = self.config("row_sums"), self.codes, self.views == 2
        row_tiles, uniform = self.n_pad // config.rows, 1.0 / codes.total_codes
        shared = {"PAIR": pair, "LOGS": mode == _CROSS_ENTROPY, "GIVEN_PRIOR": prior_probs is not None}
        for first, count, table in self.pieces(start, length):
            splits, per_split = self.splits(row_tiles, triton.cdiv(count, config.codes))
            centre = self.empty(splits, self.total, dtype=torch.float64)
            target = torch.empty_like(centre) if pair else centre
            prior = slopes if prior_probs is None else prior_probs[first : first + count]
            slope, stride = slopes[:, first - start :], slopes.stride(0)
            with self.on_device():
                passes.row_sums[(row_tiles, splits)](
                    self.high, self.low, self.rows, self.code, slope, prior, centre, target, table, codes.words,
                    self.total, self.n_pad, first, count, stride, per_split, uniform, **shared, **self.shape(config),
                    **launch_options(config),
                )  # fmt: skip
                kernels.merge_row_sums[(triton.cdiv(self.total, _BLOCK),)](
                    centre, target, state, slope, prior, self.code, self.rows, splits, self.n, self.total, self.n_pad,
                    first, count, stride, uniform, **shared, FIRST=first == 0, BLOCK=_BLOCK,
                )  # fmt: skip

    def add_cross_term(self, state: Tensor) -> None:
        """The CROSS_TERM of two views, once `state` has the other sums over these codes."""
        with self.on_device():
            kernels.cross_term[(triton.cdiv(self.total, _BLOCK),)](
                state, self.others, self.code, self.products_at_best(), self.rows, self.n, self.n_pad, self.total,
                self.codes.total_codes, BLOCK=_BLOCK,
            )  # fmt: skip

    def finish_row_sums(self, state: Tensor, beta: float) -> Tensor:
        """`(R,)` float64, the weight of each row's best code, from the sums over all codes; sets CENTRE and TARGET."""
        share = self.empty(self.total, dtype=torch.float64)
        pair = self.views == 2
        at_best = self.products_at_best() if pair else self.best
        with self.on_device():
            kernels.finish_row_sums[(triton.cdiv(self.total, _BLOCK),)](
                state, self.others, self.code, at_best, self.rows, share, self.n, self.n_pad, self.total,
                self.codes.total_codes, beta, PAIR=pair, BLOCK=_BLOCK,
            )  # fmt: skip
        return share

    def empty_state(self) -> Tensor:
        """Room for the row sums of kernels/rows.py: float64, `(4, views * n)`."""
        return self.empty(constants.NUM_ROW_SUMS, self.views * self.n, dtype=torch.float64)

    def finish_sums(self, sums: Tensor, share: Tensor, factor: float, out: list[Tensor]) -> None:
        """Writes `factor * (sums + share * w_best)` to `out`, an `(n, f)` float32 array per view."""
        codes = self.codes
        with self.on_device():
            weighted_sums.finish_sums[(self.n, len(out))](
                sums, share, self.code, codes.positions, out[0], out[-1], codes.packed, codes.packed.shape[1],
                codes.first_index, *codes.keys, self.n_pad, codes.num_features, codes.width, factor, F=codes.block,
                KIND=codes.kind, BLOCK=triton.next_power_of_2(codes.num_features),
            )  # fmt: skip

    def probabilities(self, out: Tensor, start: int, count: int, scores: bool = False) -> None:
        """p of `count` codes (or the scaled products) into `out` (n, count), from code `start` on."""
        config, codes = self.config("probabilities"), self.codes
        for first, length, table in self.pieces(start, count):
            part = out[:, first - start :]
            with self.on_device():
                passes.probabilities[(triton.cdiv(length, config.codes), triton.cdiv(self.n, config.rows))](
                    self.high, self.low, self.rows, part, table, codes.words, self.total, self.n, length,
                    out.stride(0), SCORES=scores, **self.shape(config), **launch_options(config),
                )  # fmt: skip

    # ---- results and constants of rows ----

    def best_probability(self) -> Tensor:
        """`(R,)` float64: p of each row's best code; NaN for a row that is not finite."""
        return 1 / (1 + self._others())

    def other_probability(self) -> Tensor:
        """`(R,)` float64: the p of all codes but the best together, with all its digits."""
        return self._others() / (1 + self._others())

    def _others(self) -> Tensor:
        return self.others + 0 * self.rows[_BEST]

    def logsumexp(self) -> Tensor:
        """`(n,)` float32: the natural log-sum-exp of each row."""
        best = self.rows[_BEST, : self.n].double()
        return (best / LOG2_E + self.others[: self.n].log1p()).float()

    def best_scores(self) -> tuple[Tensor, Tensor]:
        """(scores, codes) of each row's best code, `(n, 1)`."""
        return self.rows[_BEST, : self.n, None].clone(), self.code[: self.n, None].long()

    def set_centre(self, centre: Tensor) -> None:
        """What the modes CENTRED, SECOND and GIVEN subtract, `(n,)`."""
        self.rows[_CENTRE].zero_()
        self.rows[_CENTRE, : self.n] = centre

    # ---- helpers ----

    def config(self, kernel: str) -> tuning.Configuration:
        return tuning.choose(self.arch, kernel, self.codes.form, self.n)

    def shape(self, config: tuning.Configuration) -> dict[str, int]:
        codes = self.codes
        forms = {"A": codes.left, "K": codes.width, "GROUPS": codes.groups, "KRONECKER": codes.transformed}
        return {"BM": config.rows, "BN": config.codes, **forms}

    def splits(self, row_tiles: int, tiles: int) -> tuple[int, int]:
        """(splits, tiles per split): enough programs for every processor twice, no split without a tile."""
        wanted = max(1, min(tiles, -(-2 * self.processors // row_tiles)))
        per_split = triton.cdiv(tiles, wanted)
        return triton.cdiv(tiles, per_split), per_split


def launch_options(config: tuning.Configuration) -> dict[str, int]:
    # Multiply-adds are wanted: nothing here relies on a product being rounded before it is added.
    return {"num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": True}


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
