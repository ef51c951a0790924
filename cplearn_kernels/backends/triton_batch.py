"""The passes over all codes for one batch: buffers, grids and the order of the Triton kernels' launches.

Memory is O(n f + 2^22): codes go by in spans of at most 2^22, whose column sums are kept while their span is worked on.
Nothing here waits for the device, so that calls can be captured in a CUDA graph.
"""

from __future__ import annotations

import contextlib
import math

import torch
import triton

from . import triton_bits as bits
from . import triton_configurations as configurations
from . import triton_passes as passes
from . import triton_rows as kernels
from .triton_codes import KRONECKER, PACKED, Codes
from .triton_modes import CROSS_ENTROPY

SPAN = 1 << 22  # codes whose column sums are held at a time
_TABLE_WORDS = 1 << 22  # sign bits of codes that are held at a time, in 32-bit words
_SHORTEST_PIECE = 8192  # the largest Hadamard block
_MAX_ROWS = 128
_BLOCK = 128
LOG2_E = 1.4426950408889634


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
        self._table = None
        # Padding: rows of zeros with scale 1.
        self.high = self.zeros(self.total, codes.width, dtype=torch.float16)
        self.low = torch.zeros_like(self.high)
        self.rows = torch.ones(passes.NUM_CONSTANTS, self.total, device=self.device)
        self.best = self.empty(self.total)
        self.others = self.empty(self.total, dtype=torch.float64)
        self.code = self.empty(self.total, dtype=torch.int32)
        first, second = views[0], views[-1]
        with self.on_device():
            kernels.prepare_rows[(self.n, self.views)](
                first, second, codes.coordinates, self.high, self.low, self.rows, self.n_pad, self.total,
                first.stride(0), first.stride(1), second.stride(0), second.stride(1), factors[0], factors[-1],
                codes.width, BLOCK=triton.next_power_of_2(codes.width),
            )  # fmt: skip

    # ---- pieces of the dictionary and their bits ----

    def spans(self):
        """Yield (start, length) of the stretches of codes whose column sums are held together."""
        return cut(0, self.codes.num_codes, SPAN)

    def pieces(self, start: int = 0, length: int | None = None, size: int | None = None):
        """Yield (start, length, table) over the codes of a span (all by default), for one launch each."""
        if size is None:
            # Blocks' signs take one bit per code, and a dense dictionary brings its bits along.
            made = self.codes.kind not in (KRONECKER, PACKED)
            size = max(_SHORTEST_PIECE, min(SPAN, floor_power(_TABLE_WORDS // self.codes.words))) if made else SPAN
        for first, count in cut(start, self.codes.num_codes if length is None else length, size):
            yield first, count, self.table(first, count)

    def table(self, start: int, count: int) -> torch.Tensor:
        """The sign bits of a piece: int32 (count, words), or (blocks, F / 32) for Kronecker products."""
        codes = self.codes
        if codes.kind == PACKED:
            return codes.packed[start:]
        if self._table is None or self._table[:2] != (start, count):
            self._table = (start, count, self._packed_bits(start, count))
        return self._table[2]

    def table_row(self, offset: int) -> int:
        """Where the codes from `offset` on begin in a piece's table; `offset` a multiple of the block size."""
        codes = self.codes
        return offset // codes.block * codes.words if codes.kind == KRONECKER else offset

    def _packed_bits(self, start: int, count: int) -> torch.Tensor:
        codes = self.codes
        with self.on_device():
            if codes.kind == KRONECKER:
                words = triton.cdiv(count, codes.block) * codes.words
                table = self.empty(words, dtype=torch.int32)
                bits.pack_block_signs[(triton.cdiv(words, _BLOCK),)](
                    table, codes.coordinates, *codes.keys, start // codes.block, words, F=codes.block, BLOCK=_BLOCK
                )
            else:
                table = self.empty(count, codes.words, dtype=torch.int32)
                bits.pack_codes[(triton.cdiv(count * codes.groups, _BLOCK),)](
                    table, codes.sylvester, *codes.keys, start, count, codes.groups, F=codes.block, KIND=codes.kind,
                    BLOCK=_BLOCK,
                )  # fmt: skip
        return table

    def dense_codes(self, start: int, count: int) -> torch.Tensor:
        """Codes as float32 `(count, f)`, coordinate by coordinate as the finishing kernels make them."""
        codes, out = self.codes, self.empty(count, self.codes.num_features)
        with self.on_device():
            bits.dense_codes[(count,)](
                out, codes.positions, codes.packed, codes.packed.shape[1], *codes.keys, start, count,
                codes.num_features, F=codes.block, KIND=codes.kind, BLOCK=triton.next_power_of_2(codes.num_features),
            )  # fmt: skip
        return out

    # ---- passes ----

    def find_best(self, views: int | None = None) -> None:
        """Each row's best code and the sum over the others, then the constants that make probabilities of logits.

        `views=1` leaves the rows of a second view alone, which then only lends its products.
        """
        config = self.config("best_codes")
        rows = self.n_pad * (views or self.views)
        empty = self.empty if rows == self.total else self.zeros
        for start, span, table in self.pieces():
            tiles = triton.cdiv(span, config.codes)
            splits, per_split = self.splits(rows // config.rows, tiles)
            best, code = empty(splits, self.total), empty(splits, self.total, dtype=torch.int32)
            others = empty(splits, self.total, dtype=torch.float64)
            with self.on_device():
                passes.best_codes[(rows // config.rows, splits)](
                    self.high, self.low, self.rows, best, others, code, table, self.codes.words,
                    self.total, start, span, per_split, **self.shape(config), **launch_options(config),
                )  # fmt: skip
                kernels.merge_best[(triton.cdiv(self.total, _BLOCK),)](
                    best, others, code, self.best, self.others, self.code, self.total, splits, FIRST=start == 0,
                    BLOCK=_BLOCK,
                )  # fmt: skip
        with self.on_device():
            kernels.row_constants[(triton.cdiv(self.total, _BLOCK),)](
                self.best, self.others, self.rows, self.n, self.n_pad, self.total, math.log2(self.codes.num_codes),
                BLOCK=_BLOCK,
            )  # fmt: skip

    def products_at_best(self) -> torch.Tensor:
        """`(R,)`: the partner row's logit, or second product, at each row's best code."""
        out = self.zeros(self.total)
        with self.on_device():
            kernels.products_at_best[(self.n, self.views)](
                self.high, self.low, self.rows, self.code, out, self.codes.coordinates, self.codes.positions,
                self.codes.packed, self.codes.packed.shape[1], *self.codes.keys, self.n_pad, self.total,
                self.codes.width, F=self.codes.block, KIND=self.codes.kind,
                BLOCK=triton.next_power_of_2(self.codes.width),
            )  # fmt: skip
        return out

    def columns(self, start: int, length: int, mode: int, prior_probs: torch.Tensor | None = None):
        """(slopes, prior) of a span, see triton_rows.finish_columns: (views, length) and the prior term's float64 sum."""
        slopes = self.empty(self.views, length)
        prior = [self._column_piece(slopes, start, piece, mode, prior_probs) for piece in self.pieces(start, length)]
        return slopes, torch.stack(prior).sum()

    def _column_piece(self, slopes, span_start, piece, mode, prior_probs) -> torch.Tensor:
        config, codes, logs = self.config("column_sums"), self.codes, mode == CROSS_ENTROPY
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
                1.0 / self.n, codes.num_codes / self.n, 1.0 / codes.num_codes, MODE=mode,
                GIVEN_PRIOR=prior_probs is not None, BLOCK=1024,
            )  # fmt: skip
        return prior_sums.sum()

    def row_sums(self, state, start: int, length: int, slopes: torch.Tensor, mode: int, prior_probs=None) -> None:
        """Adds a span's sums of p g and p u' to `state` = (centre, target, weight of the best code).

        `slopes` (views, length) belongs to the span.
        """
        config, codes, pair = self.config("row_sums"), self.codes, self.views == 2
        row_tiles = self.n_pad // config.rows
        shared = dict(PAIR=pair, LOGS=mode == CROSS_ENTROPY, GIVEN_PRIOR=prior_probs is not None)
        for first, count, table in self.pieces(start, length):
            splits, per_split = self.splits(row_tiles, triton.cdiv(count, config.codes))
            centre = self.empty(splits, self.total, dtype=torch.float64)
            target = torch.empty_like(centre) if pair else centre
            prior = slopes if prior_probs is None else prior_probs[first : first + count]
            slope, stride = slopes[:, first - start :], slopes.stride(0)
            with self.on_device():
                passes.row_sums[(row_tiles, splits)](
                    self.high, self.low, self.rows, self.code, slope, prior, centre, target, table, codes.words,
                    self.total, self.n_pad, first, count, stride, per_split, 1.0 / codes.num_codes, **shared,
                    **self.shape(config), **launch_options(config),
                )  # fmt: skip
                kernels.merge_row_sums[(triton.cdiv(self.total, _BLOCK),)](
                    centre, target, *state, slope, prior, self.code, self.rows, splits, self.total, self.n_pad, first,
                    count, stride, 1.0 / codes.num_codes, **shared, FIRST=first == 0, BLOCK=_BLOCK,
                )  # fmt: skip

    def finish_row_sums(self, state, beta: float):
        """(share of each row's best code, terms of the invariance), both (R,) float64; sets CENTRE and TARGET."""
        share = self.empty(self.total, dtype=torch.float64)
        invariance = torch.empty_like(share)
        pair = self.views == 2
        at_best = self.products_at_best() if pair else self.best
        with self.on_device():
            kernels.finish_row_sums[(triton.cdiv(self.total, _BLOCK),)](
                *state, self.others, at_best, self.rows, share, invariance, self.n, self.n_pad, self.total, beta,
                PAIR=pair, BLOCK=_BLOCK,
            )  # fmt: skip
        return share, invariance

    def empty_state(self):
        """What `row_sums` adds to; the first span overwrites it."""
        return tuple(self.empty(self.total, dtype=torch.float64) for _ in range(3))

    def finish_sums(self, sums, share, factor: float, views: int) -> list[torch.Tensor]:
        """`factor * (sums + share * w_best)` as `(n, f)` float32 per view."""
        codes = self.codes
        out = [self.empty(self.n, codes.num_features) for _ in range(views)]
        with self.on_device():
            kernels.finish_sums[(self.n, views)](
                sums, share, self.code, codes.positions, out[0], out[-1], codes.packed, codes.packed.shape[1],
                *codes.keys, self.n_pad, codes.num_features, codes.width, factor, F=codes.block, KIND=codes.kind,
                BLOCK=triton.next_power_of_2(codes.num_features),
            )  # fmt: skip
        return out

    def probabilities(self, out: torch.Tensor, start: int, count: int, scores: bool = False) -> None:
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
        return (best / LOG2_E + self.others[: self.n].log1p()).float()

    def best_scores(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(scores, codes) of each row's best code, `(n, 1)`."""
        return self.rows[passes.BEST.value, : self.n, None].clone(), self.code[: self.n, None].long()

    def set_centre(self, centre: torch.Tensor) -> None:
        """What the modes CENTRED, SECOND and GIVEN subtract, `(n,)`."""
        self.rows[passes.CENTRE.value].zero_()
        self.rows[passes.CENTRE.value, : self.n] = centre

    # ---- helpers ----

    def empty(self, *shape, dtype=torch.float32) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def zeros(self, *shape, dtype=torch.float32) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def config(self, kernel: str) -> configurations.Configuration:
        return configurations.choose(self.arch, kernel, self.codes.form, self.n)

    def shape(self, config) -> dict:
        codes = self.codes
        return dict(BM=config.rows, BN=config.codes, A=codes.left, K=codes.width, GROUPS=codes.groups,
                    KRONECKER=codes.kind == KRONECKER)  # fmt: skip

    def splits(self, row_tiles: int, tiles: int) -> tuple[int, int]:
        """(splits, tiles per split): enough programs for every processor twice, no split without a tile."""
        wanted = max(1, min(tiles, -(-2 * self.processors // row_tiles)))
        per_split = triton.cdiv(tiles, wanted)
        return triton.cdiv(tiles, per_split), per_split

    def on_device(self):
        return torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext()


def launch_options(config) -> dict:
    # Multiply-adds are wanted: nothing here relies on a product being rounded before it is added.
    return dict(num_warps=config.warps, num_stages=config.stages, enable_fp_fusion=True)


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def cut(start: int, length: int, size: int):
    """Yield (start, length) of pieces of at most `size`."""
    for first in range(start, start + length, size):
        yield first, min(size, start + length - first)


def floor_power(x: int) -> int:
    return 1 << max(0, x.bit_length() - 1)
