"""The passes over all codes for one batch: buffers, grids and the order of the Triton kernels' launches.

Memory is O(n f + 2^22): codes go by in spans of at most 2^22, whose column sums are kept while their span is worked on.
Nothing here waits for the device, so that calls can be captured in a CUDA graph.
"""

from __future__ import annotations

import contextlib
import math

import torch
import triton

from . import triton_configurations as configurations
from . import triton_passes as passes
from . import triton_rows as kernels
from .triton_codes import KRONECKER, Codes

SPAN = 1 << 22  # codes whose column sums are held at a time
_CHUNK_ELEMENTS = 1 << 23  # weights of codes that are held at a time where sums do not fit in registers
_MAX_ROWS = 128
_BLOCK = 128
_LOG2_E = 1.4426950408889634

EXPECTED, CENTRED, REVERSE_KL, CROSS_ENTROPY, SECOND, GIVEN = range(6)


class Batch:
    """The rows of one view or two, prepared for the kernels, and the passes over all codes that they need.

    Args:
        views: one or two `(n, f)` tensors of the same shape, any strides.
        codes: the dictionary as kernel arguments.
        factors: what each view is multiplied with: log2(e) / temperature for logits in powers of two.
    """

    def __init__(self, views: list[torch.Tensor], codes: Codes, factors: list[float]):
        self.codes, self.device = codes, views[0].device
        self.n, self.views = views[0].shape[0], len(views)
        self.arch = configurations.architecture(self.device)
        self.n_pad = -(-self.n // _MAX_ROWS) * _MAX_ROWS if self.n > 64 else max(16, 1 << (self.n - 1).bit_length())
        self.total = self.n_pad * self.views
        self.processors = _processors(self.device)
        self.high = self._empty(self.total, codes.width, dtype=torch.float16)
        self.low = torch.empty_like(self.high)
        self.rows = self._empty(passes.NUM_CONSTANTS, self.total)
        self.best = self._empty(self.total)
        self.others = self._empty(self.total, dtype=torch.float64)
        self.code = self._empty(self.total, dtype=torch.int32)
        first, second = views[0], views[-1]
        with self._on_device():
            kernels.prepare_rows[(self.n_pad, self.views)](
                first, second, codes.coordinates, self.high, self.low, self.rows, self.n, self.n_pad, self.total,
                first.stride(0), first.stride(1), second.stride(0), second.stride(1), factors[0], factors[-1],
                codes.width, BLOCK=triton.next_power_of_2(codes.width),
            )  # fmt: skip

    # ---- spans and tables ----

    def spans(self):
        """Yield (start, span, table) over all codes; the table holds a span's signs for Kronecker products."""
        c = self.codes.num_codes
        for start in range(0, c, SPAN):
            span = min(SPAN, c - start)
            yield start, span, self.table(start, span)

    def table(self, start: int, span: int) -> torch.Tensor:
        """What the kernels read of a span's codes besides the seed: packed codes, Sylvester bits or blocks' signs."""
        codes = self.codes
        if codes.form != KRONECKER:
            return codes.table
        words = -(-span // codes.block) * (codes.block // 32)
        table = self._empty(words, dtype=torch.int32)
        with self._on_device():
            kernels.pack_block_signs[(triton.cdiv(words, _BLOCK),)](
                codes.coordinates, table, *codes.keys, start // codes.block, words, F=codes.block, BLOCK=_BLOCK
            )
        return table

    # ---- passes ----

    def find_best(self, views: int | None = None) -> None:
        """Each row's best code and the sum over the others, then the constants that make probabilities of logits.

        `views=1` leaves the rows of a second view alone, which then only lends its products.
        """
        config = self._config("best_codes")
        rows = self.n_pad * (views or self.views)
        empty = self._empty if rows == self.total else self._zeros
        for start, span, table in self.spans():
            tiles = triton.cdiv(span, config.codes)
            splits, per_split = self._splits(rows // config.rows, tiles)
            best, code = empty(splits, self.total), empty(splits, self.total, dtype=torch.int32)
            others = empty(splits, self.total, dtype=torch.float64)
            with self._on_device():
                passes.best_codes[(rows // config.rows, splits)](
                    self.high, self.low, self.rows, best, others, code, table, self.codes.words, *self.codes.keys,
                    self.total, start, span, per_split, **self._shape(config), RELOAD=self._reload(config),
                    **_launch(config),
                )  # fmt: skip
                kernels.merge_best[(triton.cdiv(self.total, _BLOCK),)](
                    best, others, code, self.best, self.others, self.code, self.total, splits, FIRST=start == 0,
                    BLOCK=_BLOCK,
                )  # fmt: skip
        with self._on_device():
            kernels.row_constants[(triton.cdiv(self.total, _BLOCK),)](
                self.best, self.others, self.rows, self.n, self.n_pad, self.total, math.log2(self.codes.num_codes),
                BLOCK=_BLOCK,
            )  # fmt: skip

    def products_at_best(self) -> torch.Tensor:
        """`(R,)`: the partner row's logit, or second product, at each row's best code."""
        out = self._empty(self.total)
        with self._on_device():
            kernels.products_at_best[(self.total,)](
                self.high, self.low, self.rows, self.code, out, self.codes.coordinates, self.codes.positions,
                self.codes.table, self.codes.words, *self.codes.keys, self.n_pad, self.total, self.codes.num_features,
                self.codes.width, F=self.codes.block, FORM=self.codes.form,
                BLOCK=triton.next_power_of_2(self.codes.width),
            )  # fmt: skip
        return out

    def columns(self, start: int, span: int, table: torch.Tensor, mode: int, prior_probs: torch.Tensor | None = None):
        """(slopes, prior_sums) of a span, see triton_rows.finish_columns; slopes (views, span)."""
        config, codes, logs = self._config("column_sums"), self.codes, mode == CROSS_ENTROPY
        tiles = triton.cdiv(span, config.codes)
        row_tiles = triton.cdiv(self.n, config.rows)
        splits = max(1, min(row_tiles, 64, 2 * self.processors // (tiles * self.views)))
        per_split = triton.cdiv(row_tiles, splits) * config.rows
        splits = triton.cdiv(self.n, per_split)
        sums = self._empty(splits, self.views, span)
        best = torch.empty_like(sums) if logs else sums
        blocks = triton.cdiv(span, 1024)
        slopes = self._empty(self.views, span)
        prior_sums = self._empty(self.views, blocks, dtype=torch.float64)
        prior = sums if prior_probs is None else prior_probs[start : start + span]
        with self._on_device():
            passes.column_sums[(tiles, splits, self.views)](
                self.high, self.low, self.rows, sums, best, table, codes.words, *codes.keys, self.total, self.n,
                self.n_pad, start, span, per_split, LOGS=logs, **self._shape(config), **_launch(config),
            )  # fmt: skip
            kernels.finish_columns[(blocks, self.views)](
                sums, best, prior, slopes, prior_sums, splits, span, 1.0 / self.n, codes.num_codes / self.n,
                1.0 / codes.num_codes, MODE=mode, GIVEN_PRIOR=prior_probs is not None, BLOCK=1024,
            )  # fmt: skip
        return slopes, prior_sums

    def row_sums(self, state, start, span, table, slopes, mode, prior_probs=None) -> None:
        """Adds a span's sums of p g and p u' to `state` = (centre, target, weight of the best code)."""
        config, codes = self._config("row_sums"), self.codes
        pair = self.views == 2
        row_tiles = self.n_pad // config.rows
        splits, per_split = self._splits(row_tiles, triton.cdiv(span, config.codes))
        centre = self._empty(splits, self.total, dtype=torch.float64)
        target = torch.empty_like(centre) if pair else centre
        prior = slopes if prior_probs is None else prior_probs[start : start + span]
        shared = dict(PAIR=pair, LOGS=mode == CROSS_ENTROPY, GIVEN_PRIOR=prior_probs is not None)
        with self._on_device():
            passes.row_sums[(row_tiles, splits)](
                self.high, self.low, self.rows, self.code, slopes, prior, centre, target, table, codes.words,
                *codes.keys, self.total, self.n_pad, start, span, per_split, 1.0 / codes.num_codes, **shared,
                **self._shape(config), **_launch(config),
            )  # fmt: skip
            kernels.merge_row_sums[(triton.cdiv(self.total, _BLOCK),)](
                centre, target, *state, slopes, prior, self.code, self.rows, splits, self.total, self.n_pad, start,
                span, 1.0 / codes.num_codes, **shared, FIRST=start == 0, BLOCK=_BLOCK,
            )  # fmt: skip

    def finish_row_sums(self, state, beta: float):
        """(share of each row's best code, terms of the invariance), both (R,) float64; sets CENTRE and TARGET."""
        share = self._empty(self.total, dtype=torch.float64)
        invariance = torch.empty_like(share)
        pair = self.views == 2
        at_best = self.products_at_best() if pair else self.best
        with self._on_device():
            kernels.finish_row_sums[(triton.cdiv(self.total, _BLOCK),)](
                *state, self.others, at_best, self.rows, share, invariance, self.n, self.n_pad, self.total, beta,
                PAIR=pair, BLOCK=_BLOCK,
            )  # fmt: skip
        return share, invariance

    def empty_state(self):
        """What `row_sums` adds to; the first span overwrites it."""
        return tuple(self._empty(self.total, dtype=torch.float64) for _ in range(3))

    def weighted_codes(self, mode: int, slopes_of, beta: float = 0.0, prior_probs=None, prior=None) -> torch.Tensor:
        """`sum_j x_j w_j` over all codes but each row's best: (R, K) float64; `slopes_of(start, span, table)` per span.

        `prior` stands in for `prior_probs` where the mode takes a second array of another shape (GIVEN).
        """
        both = mode in (REVERSE_KL, CROSS_ENTROPY)
        rows = self.total if both or self.views == 1 else self.n_pad
        sums = self._empty(self.total, self.codes.width, dtype=torch.float64)
        for start, span, table in self.spans():
            slopes = slopes_of(start, span, table)
            second = prior if prior is not None else slopes
            if prior_probs is not None:
                second = prior_probs[start : start + span]
            arguments = (start, span, table, slopes, second, mode, beta, prior_probs is not None)
            run = self._grouped if self.codes.groups > 1 else self._in_registers
            parts = run(*arguments)
            elements = rows * self.codes.width
            with self._on_device():
                kernels.merge_weighted[(triton.cdiv(elements, 1024),)](
                    parts, sums, self.total * self.codes.width, elements, parts.shape[0], FIRST=start == 0, BLOCK=1024
                )
        return sums

    def _in_registers(self, start, span, table, slopes, second, mode, beta, given):
        both = mode in (REVERSE_KL, CROSS_ENTROPY)
        config, codes = self._config("weighted_codes" if both else "weighted_codes_one"), self.codes
        row_tiles = self.n_pad // config.rows
        splits, per_split = self._splits(row_tiles, triton.cdiv(span, config.codes))
        parts = self._empty(splits, self.total, codes.width)
        shape = self._shape(config)
        del shape["GROUPS"]
        with self._on_device():
            passes.weighted_codes[(row_tiles, splits)](
                self.high, self.low, self.rows, self.code, slopes, second, parts, table, codes.words, *codes.keys,
                self.total, self.n_pad, start, span, per_split, 1.0 / codes.num_codes, beta, beta / _LOG2_E, self.n,
                codes.num_codes, PAIR=self.views == 2, MODE=mode, GIVEN_PRIOR=given, **shape,
                RELOAD=self._reload(config), **_launch(config),
            )  # fmt: skip
        return parts

    def _grouped(self, start, span, table, slopes, second, mode, beta, given):
        codes = self.codes
        making, adding = self._config("chunk_weights"), self._config("weighted_chunk")
        tile = making.codes
        chunk = max(tile, min(triton.cdiv(span, tile) * tile, _floor_power(_CHUNK_ELEMENTS // self.total)))
        x_high = self._empty(self.total, chunk, dtype=torch.float16)
        x_low = torch.empty_like(x_high)
        scales = self._empty(self.total, chunk // tile)
        row_tiles = self.total // adding.rows
        splits, per_split = self._splits(row_tiles * codes.groups, chunk // tile)
        parts = torch.zeros(splits, self.total, codes.width, device=self.device)
        if mode not in (REVERSE_KL, CROSS_ENTROPY) and self.views == 2:
            row_tiles = self.n_pad // adding.rows
        shared = dict(F=codes.block, GROUPS=codes.groups, FORM=codes.form)
        for first in range(0, span, chunk):
            with self._on_device():
                passes.chunk_weights[(self.n_pad // making.rows, chunk // tile)](
                    self.high, self.low, self.rows, self.code, slopes, second, x_high, x_low, scales, table,
                    codes.words, *codes.keys, self.total, self.n_pad, start, span, first, chunk, 1.0 / codes.num_codes,
                    beta, beta / _LOG2_E, self.n, codes.num_codes, PAIR=self.views == 2, MODE=mode, GIVEN_PRIOR=given,
                    BM=making.rows, BN=tile, **shared, **_launch(making),
                )  # fmt: skip
                passes.weighted_chunk[(row_tiles, codes.groups, splits)](
                    x_high, x_low, scales, parts, table, codes.words, *codes.keys, self.total, start + first,
                    start + span, chunk, per_split, BM=adding.rows, BN=tile, **shared, **_launch(adding),
                )  # fmt: skip
        return parts

    def finish_sums(self, sums, share, factor: float, views: int) -> list[torch.Tensor]:
        """`factor * (sums + share * w_best)` as `(n, f)` float32 per view."""
        codes = self.codes
        out = [self._empty(self.n, codes.num_features) for _ in range(views)]
        with self._on_device():
            kernels.finish_sums[(self.n, views)](
                sums, share, self.code, codes.positions, out[0], out[-1], codes.table, codes.words, *codes.keys,
                self.n_pad, codes.num_features, codes.width, factor, F=codes.block, FORM=codes.form,
                BLOCK=triton.next_power_of_2(codes.num_features),
            )  # fmt: skip
        return out

    def probabilities(self, out, start, span, table, scores: bool = False) -> None:
        """p of a span of codes (or the scaled products) into `out`, whose first column is the span's first code."""
        config, codes = self._config("probabilities"), self.codes
        with self._on_device():
            passes.probabilities[(triton.cdiv(span, config.codes), triton.cdiv(self.n, config.rows))](
                self.high, self.low, self.rows, out, table, codes.words, *codes.keys, self.total, self.n, start, span,
                out.stride(0), SCORES=scores, **self._shape(config), **_launch(config),
            )  # fmt: skip

    # ---- results and constants of rows ----

    def best_probability(self) -> torch.Tensor:
        """`(R,)` float64: p of each row's best code; NaN for a row that is not finite."""
        return 1 / (1 + self._others())

    def other_probability(self) -> torch.Tensor:
        """`(R,)` float64: the p of all codes but the best together, with all its digits."""
        return self._others() / (1 + self._others())

    def _others(self) -> torch.Tensor:
        return self.others + 0 * self.rows[passes.BEST.value]

    def logsumexp(self) -> torch.Tensor:
        """`(n,)` float32: the natural log-sum-exp of each row."""
        best = self.rows[passes.BEST.value, : self.n].double()
        return (best / _LOG2_E + self.others[: self.n].log1p()).float()

    def best_scores(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(scores, codes) of each row's best code, `(n, 1)`."""
        return self.rows[passes.BEST.value, : self.n, None].clone(), self.code[: self.n, None].long()

    def set_centre(self, centre: torch.Tensor) -> None:
        """What the modes CENTRED, SECOND and GIVEN subtract, `(n,)`."""
        self.rows[passes.CENTRE.value].zero_()
        self.rows[passes.CENTRE.value, : self.n] = centre

    # ---- helpers ----

    def _empty(self, *shape, dtype=torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def _zeros(self, *shape, dtype=torch.float32) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def _config(self, kernel: str) -> configurations.Configuration:
        return configurations.choose(self.arch, kernel, self.codes.key, self.n)

    def _reload(self, config) -> bool:
        return config.reload and self.codes.groups == 1

    def _shape(self, config) -> dict:
        codes = self.codes
        return dict(BM=config.rows, BN=config.codes, A=codes.left, F=codes.block, K=codes.width, GROUPS=codes.groups,
                    FORM=codes.form)  # fmt: skip

    def _splits(self, row_tiles: int, tiles: int) -> tuple[int, int]:
        """(splits, tiles per split): enough programs for every processor twice, no split without a tile."""
        wanted = max(1, min(tiles, -(-2 * self.processors // row_tiles)))
        per_split = triton.cdiv(tiles, wanted)
        return triton.cdiv(tiles, per_split), per_split

    def _on_device(self):
        return torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()


def _launch(config) -> dict:
    return dict(num_warps=config.warps, num_stages=config.stages)


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def _floor_power(x: int) -> int:
    return 1 << max(0, x.bit_length() - 1)
