"""Sums of weighted codes over all codes for a `Batch`: which kernels of kernels/weighted_sums.py run, on what pieces."""

from __future__ import annotations

import torch
import triton

from .kernels import rows
from .kernels import weighted_sums as kernels
from .batch import LOG2_E, Batch, launch_options
from .kernels.constants import CROSS_ENTROPY, GIVEN, REVERSE_KL
from .pieces import cut, floor_power

# Weights of codes that are held at a time where sums do not fit in registers.
_CHUNK_ELEMENTS = 1 << 23
# Tiles whose sum is formed in float32; what comes of them is added in float64.
_FLUSH_TILES = 32


def weighted_codes(batch: Batch, mode: int, slopes_of, beta: float = 0.0, prior_probs=None, given=None) -> torch.Tensor:
    """`sum_j x_j w_j` over all codes but each row's best: (R, K) float64.

    Args:
        mode: which weights x, see kernels/weighted_sums._tile_weights.
        slopes_of: (start, length) of a span -> its (views, length) array of the mode.
        given: for GIVEN, the arrays P and V of shape `(n, c)`.
    """
    sums = batch.empty(batch.total, batch.codes.width, dtype=torch.float64)
    add = _add_grouped if batch.codes.groups > 1 else _add_in_registers
    for start, length in batch.spans():
        slopes = given[0] if given else slopes_of(start, length)
        add(batch, sums, start, length, slopes, mode, beta, prior_probs, given)
    return sums


def _merge(batch, sums, parts, mode, first: bool) -> None:
    """Adds the splits' parts to `sums` in float64; `first` overwrites what was there."""
    both = mode in (REVERSE_KL, CROSS_ENTROPY)
    elements = (batch.total if both or batch.views == 1 else batch.n_pad) * batch.codes.width
    with batch.on_device():
        rows.merge_weighted[(triton.cdiv(elements, 1024),)](
            parts, sums, batch.total * batch.codes.width, elements, parts.shape[0], FIRST=first, BLOCK=1024
        )


def _weight_arrays(slopes, span_start, first, count, prior_probs, given):
    """(slopes, prior, stride) of a piece, as the kernels take them."""
    if given:
        return *given, 0
    prior = slopes if prior_probs is None else prior_probs[first : first + count]
    return slopes[:, first - span_start :], prior, slopes.stride(0)


def _add_in_registers(batch, sums, start, length, slopes, mode, beta, prior_probs, given) -> None:
    both = mode in (REVERSE_KL, CROSS_ENTROPY)
    kernel = "weighted_codes" if both else "weighted_codes_given" if mode == GIVEN else "weighted_codes_one"
    config, codes = batch.config(kernel), batch.codes
    row_tiles = batch.n_pad // config.rows
    shape = batch.shape(config)
    del shape["GROUPS"]
    most = batch.splits(row_tiles, codes.num_codes)[0] * _FLUSH_TILES * config.codes
    for piece, size, whole_table in batch.pieces(start, length):
        for first, count in cut(piece, size, most):
            slope, prior, stride = _weight_arrays(slopes, start, first, count, prior_probs, given)
            table = whole_table[batch.table_row(first - piece) :]
            splits, per_split = batch.splits(row_tiles, triton.cdiv(count, config.codes))
            parts = batch.empty(splits, batch.total, codes.width)
            with batch.on_device():
                kernels.weighted_codes[(row_tiles, splits)](
                    batch.high, batch.low, batch.rows, batch.code, slope, prior, parts, table, codes.words,
                    batch.total, batch.n_pad, first, count, stride, per_split, 1.0 / codes.total_codes, beta,
                    beta / LOG2_E, batch.n, codes.num_codes, PAIR=batch.views == 2, MODE=mode,
                    GIVEN_PRIOR=prior_probs is not None, **shape, **launch_options(config),
                )  # fmt: skip
            _merge(batch, sums, parts, mode, first == 0)


def _add_grouped(batch, sums, start, length, slopes, mode, beta, prior_probs, given) -> None:
    """As `_add_in_registers`, where a row's sums do not fit: weights of a chunk of codes to memory, then products."""
    both, codes = mode in (REVERSE_KL, CROSS_ENTROPY), batch.codes
    making, adding = batch.config("chunk_weights"), batch.config("weighted_chunk")
    tile = making.codes
    chunk = max(tile, min(triton.cdiv(length, tile) * tile, floor_power(_CHUNK_ELEMENTS // batch.total)))
    x_high = batch.empty(batch.total, chunk, dtype=torch.float16)
    x_low = torch.empty_like(x_high)
    scales = batch.empty(batch.total, chunk // tile)
    row_tiles = (batch.total if both else batch.n_pad) // adding.rows
    splits, per_split = batch.splits(row_tiles * codes.groups, chunk // tile)
    if per_split > _FLUSH_TILES:
        splits, per_split = triton.cdiv(chunk // tile, _FLUSH_TILES), _FLUSH_TILES
    parts = batch.zeros(splits, batch.total, codes.width)
    for first, count, table in batch.pieces(start, length, chunk):
        slope, prior, stride = _weight_arrays(slopes, start, first, count, prior_probs, given)
        with batch.on_device():
            kernels.chunk_weights[(batch.n_pad // making.rows, chunk // tile)](
                batch.high, batch.low, batch.rows, batch.code, slope, prior, x_high, x_low, scales, table, codes.words,
                batch.total, batch.n_pad, first, count, stride, chunk, 1.0 / codes.total_codes, beta, beta / LOG2_E,
                batch.n, codes.num_codes, PAIR=batch.views == 2, MODE=mode, GIVEN_PRIOR=prior_probs is not None,
                BM=making.rows, BN=tile, GROUPS=codes.groups, **launch_options(making),
            )  # fmt: skip
            kernels.weighted_chunk[(row_tiles, codes.groups, splits)](
                x_high, x_low, scales, parts, table, codes.words, batch.total, count, chunk, per_split,
                BM=adding.rows, BN=tile, GROUPS=codes.groups, **launch_options(adding),
            )  # fmt: skip
    _merge(batch, sums, parts, mode, start == 0)
