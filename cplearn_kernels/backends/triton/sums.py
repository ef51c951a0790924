"""Sums of weighted codes over all codes for a `Batch`: which kernels of weighted_sums.py run, on what pieces."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import triton
from torch import Tensor

from .kernels import constants
from .kernels import weighted_sums as kernels
from .launches import LOG2_E, Batch, launch_options
from .pieces import cut, floor_power

# Weights of codes that are held at a time where sums do not fit in registers.
_CHUNK_ELEMENTS = 1 << 23
# Tiles whose sum is formed in float32; what comes of them is added in float64.
_FLUSH_TILES = 32


@dataclasses.dataclass(frozen=True)
class Weights:
    """Which weights x codes are summed with, see kernels/weighted_sums._tile_weights.

    Attributes:
        mode: one of kernels/constants.py.
        slopes_of: (start, length) of a span -> its (views, length) array of the mode.
        beta, prior_probs: of the loss.
        given: for GIVEN, the arrays P and V of shape `(n, c)`.
    """

    mode: int
    slopes_of: Callable[[int, int], Tensor] | None = None
    beta: float = 0.0
    prior_probs: Tensor | None = None
    given: tuple[Tensor, Tensor] | None = None

    @property
    def of_both_views(self) -> bool:
        """Whether there is a sum for the rows of either view."""
        return self.mode in (constants.REVERSE_KL.value, constants.CROSS_ENTROPY.value)

    def slopes(self, start: int, length: int) -> Tensor:
        """The array of the mode for a span."""
        if self.given is not None:
            return self.given[0]
        assert self.slopes_of is not None
        return self.slopes_of(start, length)

    def arrays(self, slopes: Tensor, span_start: int, first: int, count: int) -> tuple[Tensor, Tensor, int]:
        """(slopes, prior, stride) of a piece, as the kernels take them."""
        if self.given is not None:
            return *self.given, 0
        prior = slopes if self.prior_probs is None else self.prior_probs[first : first + count]
        return slopes[:, first - span_start :], prior, slopes.stride(0)


def weighted_codes(batch: Batch, weights: Weights) -> Tensor:
    """`sum_j x_j w_j` over all codes but each row's best: (R, K) float64."""
    sums = batch.empty(batch.total, batch.codes.width, dtype=torch.float64)
    add = _add_grouped if batch.codes.groups > 1 else _add_in_registers
    for start, length in batch.spans():
        add(batch, sums, start, length, weights.slopes(start, length), weights)
    return sums


def _merge(batch: Batch, sums: Tensor, parts: Tensor, weights: Weights, first: bool) -> None:
    """Adds the splits' parts to `sums` in float64; `first` overwrites what was there."""
    rows_summed = batch.total if weights.of_both_views or batch.views == 1 else batch.n_pad
    elements = rows_summed * batch.codes.width
    with batch.on_device():
        kernels.merge_weighted[(triton.cdiv(elements, 1024),)](
            parts, sums, batch.total * batch.codes.width, elements, parts.shape[0], FIRST=first, BLOCK=1024
        )


def _add_in_registers(batch: Batch, sums: Tensor, start: int, length: int, slopes: Tensor, weights: Weights) -> None:
    kernel = "weighted_codes_given" if weights.given is not None else "weighted_codes_one"
    if weights.of_both_views:
        kernel = "weighted_codes"
    config, codes = batch.config(kernel), batch.codes
    row_tiles = batch.n_pad // config.rows
    shape = batch.shape(config)
    del shape["GROUPS"]
    most = batch.splits(row_tiles, codes.num_codes)[0] * _FLUSH_TILES * config.codes
    for piece, size, whole_table in batch.pieces(start, length):
        for first, count in cut(piece, size, most):
            slope, prior, stride = weights.arrays(slopes, start, first, count)
            table = whole_table[batch.table_row(first - piece) :]
            splits, per_split = batch.splits(row_tiles, triton.cdiv(count, config.codes))
            parts = batch.empty(splits, batch.total, codes.width)
            with batch.on_device():
                kernels.weighted_codes[(row_tiles, splits)](
                    batch.high, batch.low, batch.rows, batch.code, slope, prior, parts, table, codes.words,
                    batch.total, batch.n_pad, first, count, stride, per_split, 1.0 / codes.total_codes, weights.beta,
                    weights.beta / LOG2_E, batch.n, codes.num_codes, PAIR=batch.views == 2, MODE=weights.mode,
                    GIVEN_PRIOR=weights.prior_probs is not None, **shape, **launch_options(config),
                )  # fmt: skip
            _merge(batch, sums, parts, weights, first == 0)


def _add_grouped(batch: Batch, sums: Tensor, start: int, length: int, slopes: Tensor, weights: Weights) -> None:
    """As `_add_in_registers`, where a row's sums do not fit: weights of a chunk of codes to memory, then products."""
    codes = batch.codes
    making, adding = batch.config("chunk_weights"), batch.config("weighted_chunk")
    tile = making.codes
    chunk = max(tile, min(triton.cdiv(length, tile) * tile, floor_power(_CHUNK_ELEMENTS // batch.total)))
    x_high = batch.empty(batch.total, chunk, dtype=torch.float16)
    x_low = torch.empty_like(x_high)
    scales = batch.empty(batch.total, chunk // tile)
    row_tiles = (batch.total if weights.of_both_views else batch.n_pad) // adding.rows
    splits, per_split = batch.splits(row_tiles * codes.groups, chunk // tile)
    if per_split > _FLUSH_TILES:
        splits, per_split = triton.cdiv(chunk // tile, _FLUSH_TILES), _FLUSH_TILES
    parts = batch.zeros(splits, batch.total, codes.width)
    for first, count, table in batch.pieces(start, length, chunk):
        slope, prior, stride = weights.arrays(slopes, start, first, count)
        with batch.on_device():
            kernels.chunk_weights[(batch.n_pad // making.rows, chunk // tile)](
                batch.high, batch.low, batch.rows, batch.code, slope, prior, x_high, x_low, scales, table, codes.words,
                batch.total, batch.n_pad, first, count, stride, chunk, 1.0 / codes.total_codes, weights.beta,
                weights.beta / LOG2_E, batch.n, codes.num_codes, PAIR=batch.views == 2, MODE=weights.mode,
                GIVEN_PRIOR=weights.prior_probs is not None, BM=making.rows, BN=tile, GROUPS=codes.groups,
                **launch_options(making),
            )  # fmt: skip
            kernels.weighted_chunk[(row_tiles, codes.groups, splits)](
                x_high, x_low, scales, parts, table, codes.words, batch.total, count, chunk, per_split,
                BM=adding.rows, BN=tile, GROUPS=codes.groups, **launch_options(adding),
            )  # fmt: skip
    _merge(batch, sums, parts, weights, start == 0)
