"""Triton kernels that sum codes with weights over all codes: gradients and the expected code.

Conventions are those of passes.py. A row's best code is left out and added in float64 by `finish_sums`:
near the optimum it is nearly all of the sum, and what counts is the small rest.
"""

import triton
import triton.language as tl

from . import constants, passes, tiles
from . import sign_bits as bits
from .constants import CENTRE, CENTRED, CROSS_ENTROPY, EXPECTED, GIVEN, REVERSE_KL, SCALE, SECOND, TARGET


@triton.jit
def _loss_weight(p, u_partner, d, rows, total, row, prior_weight, slope, beta, CROSS: tl.constexpr, BM: tl.constexpr):
    """`p (g - sigma) - beta p (u' - t) + beta (p - p')` for `d = beta (p - p')`, beta in u's unit."""
    centre = passes.constant(rows, CENTRE, total, row, BM)[:, None]
    pull = beta * (u_partner - passes.constant(rows, TARGET, total, row, BM)[:, None])
    if CROSS:
        return prior_weight - p * (centre + pull) + d
    return p * ((slope - centre) - pull) + d


@triton.jit
def _tile_weights(s_a, s_b, tile, rows, best, slopes, prior, total, row_a, row_b, start, span, slope_stride, column,
                  uniform, beta, beta_ln2, num_rows, num_codes, MODE: tl.constexpr, GIVEN_PRIOR: tl.constexpr,
                  BM: tl.constexpr, BN: tl.constexpr):  # fmt: skip
    """The weights x (BM, BN) of a tile's codes in the sum `sum_j x_j w_j`, for one row or two; 0 at a row's best code.

    * EXPECTED: p (expected_code)
    * CENTRED: p (g - centre), g given per code (backward of mean_assignment)
    * REVERSE_KL, CROSS_ENTROPY: the gradient of the loss, docs/mathematics.md, both views
    * SECOND: p (v - centre), v the product of the second rows (backward of expected_code)
    * GIVEN: P (V - centre), arrays of shape (num_rows, num_codes) (backward of projector_softmax)
    """
    inside = column < span
    best_a = tl.load(best + row_a + tl.arange(0, BM)) - start
    best_b = best_a
    if MODE == GIVEN:
        at = row_a + tl.arange(0, BM)[:, None]
        mask = inside[None, :] & (at < num_rows)
        at = at.to(tl.int64) * num_codes + start + column[None, :]
        p = tl.load(slopes + at, mask=mask, other=0.0)
        x_a = p * (tl.load(prior + at, mask=mask, other=0.0) - passes.constant(rows, CENTRE, total, row_a, BM)[:, None])
        x_b = x_a
    else:
        p_a, u_a = passes.probability(s_a, rows, total, row_a, BM)
        x_a = p_a
        x_b = p_a
        if MODE == CENTRED:
            slope_a = tl.load(slopes + column, mask=inside, other=0.0)[None, :]
            x_a = p_a * (slope_a - passes.constant(rows, CENTRE, total, row_a, BM)[:, None])
        elif MODE == SECOND:
            v = s_b * passes.constant(rows, SCALE, total, row_b, BM)[:, None]
            x_a = p_a * (v - passes.constant(rows, CENTRE, total, row_a, BM)[:, None])
        elif MODE != EXPECTED:
            best_b = tl.load(best + row_b + tl.arange(0, BM)) - start
            p_b, u_b = passes.probability(s_b, rows, total, row_b, BM)
            slope_a = tl.load(slopes + column, mask=inside, other=0.0)[None, :]
            slope_b = tl.load(slopes + slope_stride + column, mask=inside, other=0.0)[None, :]
            d = beta * (p_a - p_b)
            weight_a = slope_a
            weight_b = slope_b
            if MODE == CROSS_ENTROPY:
                q = uniform
                if GIVEN_PRIOR:
                    q = tl.load(prior + column, mask=inside, other=0.0)[None, :]
                weight_a = -q * tl.exp2(u_a - slope_a)
                weight_b = -q * tl.exp2(u_b - slope_b)
            x_a = _loss_weight(p_a, u_b, d, rows, total, row_a, weight_a, slope_a, beta_ln2, MODE == CROSS_ENTROPY, BM)
            x_b = _loss_weight(p_b, u_a, -d, rows, total, row_b, weight_b, slope_b, beta_ln2, MODE == CROSS_ENTROPY, BM)
        if passes.special(best_a, best_b, tile, span, BN):
            x_a = tl.where(inside[None, :] & (column[None, :] != best_a[:, None]), x_a, 0.0)
            x_b = tl.where(inside[None, :] & (column[None, :] != best_b[:, None]), x_b, 0.0)
    return x_a, x_b


@triton.jit(
    do_not_specialize=[
        "start",
        "span",
        "slope_stride",
        "tiles_per_split",
        "uniform",
        "beta",
        "beta_ln2",
        "num_rows",
        "num_codes",
        "words",
    ]
)
def weighted_codes(high, low, rows, best, slopes, prior, sums_out, table, words, total, n_pad, start, span,
                   slope_stride, tiles_per_split, uniform, beta, beta_ln2, num_rows, num_codes, PAIR: tl.constexpr,
                   MODE: tl.constexpr, GIVEN_PRIOR: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, A: tl.constexpr,
                   K: tl.constexpr, KRONECKER: tl.constexpr):  # fmt: skip
    """`sum_j x_j w_j` over all codes but each row's best, x as in _tile_weights; outputs (splits, R, K), float32.

    For Kronecker products and codes of one group of coordinates: a row's sums stay in registers.
    """
    row_a = tl.program_id(0) * BM
    row_b = row_a + n_pad
    split = tl.program_id(1)
    BOTH: tl.constexpr = MODE == REVERSE_KL or MODE == CROSS_ENTROPY
    left = tiles.sylvester(A)
    right = tiles.sylvester(BN // A if KRONECKER else 16)
    sum_a = tl.zeros([BM * A, K // A] if KRONECKER else [BM, K], tl.float32)
    sum_b = tl.zeros([BM * A, K // A] if KRONECKER else [BM, K], tl.float32)
    first = split * tiles_per_split
    for tile in range(first, tl.minimum(first + tiles_per_split, tl.cdiv(span, BN))):
        operand = passes.tile_operand(tile, span, table, words, BM, BN, A, K, 1, KRONECKER)
        column = tile * BN + tiles.columns(BN, A, KRONECKER)
        s_a = tl.zeros([BM, BN], tl.float32)
        s_b = s_a
        if MODE != GIVEN:
            s_a, s_b = passes.logits(high, low, row_a, row_b, operand, left, right, table, words, PAIR, BM, BN, A, K, 1,
                               KRONECKER)  # fmt: skip
        x_a, x_b = _tile_weights(s_a, s_b, tile, rows, best, slopes, prior, total, row_a, row_b, start, span,
                                 slope_stride, column, uniform, beta, beta_ln2, num_rows, num_codes, MODE, GIVEN_PRIOR,
                                 BM, BN)  # fmt: skip
        if KRONECKER:
            sum_a += tiles.kronecker_back(x_a, operand, left, right, BM, A, BN // A)
            if BOTH:
                sum_b += tiles.kronecker_back(x_b, operand, left, right, BM, A, BN // A)
        else:
            sum_a += tiles.codes_back(x_a, operand)
            if BOTH:
                sum_b += tiles.codes_back(x_b, operand)
    if KRONECKER:
        at = tl.arange(0, BM * A)[:, None] * (K // A) + tl.arange(0, K // A)[None, :]
    else:
        at = tl.arange(0, BM)[:, None] * K + tl.arange(0, K)[None, :]
    out = sums_out + (split.to(tl.int64) * total + row_a) * K
    tl.store(out + at, sum_a)
    if BOTH:
        tl.store(out + n_pad.to(tl.int64) * K + at, sum_b)


@triton.jit(
    do_not_specialize=["start", "span", "slope_stride", "uniform", "beta", "beta_ln2", "num_rows", "num_codes", "words"]
)
def chunk_weights(high, low, rows, best, slopes, prior, high_out, low_out, scale_out, table, words, total,
                  n_pad, start, span, slope_stride, chunk, uniform, beta, beta_ln2, num_rows, num_codes,
                  PAIR: tl.constexpr, MODE: tl.constexpr, GIVEN_PRIOR: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
                  GROUPS: tl.constexpr):  # fmt: skip
    """The weights of `span` codes, as two float16 halves (R, chunk >= span) and a scale per row and tile.

    For codes of several groups of coordinates, whose sums do not fit in registers; `weighted_chunk` takes it from here.
    """
    row_a = tl.program_id(0) * BM
    row_b = row_a + n_pad
    tile = tl.program_id(1)
    BOTH: tl.constexpr = MODE == REVERSE_KL or MODE == CROSS_ENTROPY
    column = tile * BN + tl.arange(0, BN)
    s_a = tl.zeros([BM, BN], tl.float32)
    s_b = s_a
    if MODE != GIVEN:
        code = tl.minimum(column, span - 1)
        s_a, s_b = tiles.grouped_logits(high, low, row_a, row_b, code, table, words, PAIR, BM, BN, GROUPS)
    x_a, x_b = _tile_weights(s_a, s_b, tile, rows, best, slopes, prior, total, row_a, row_b, start, span, slope_stride,
                             column, uniform, beta, beta_ln2, num_rows, num_codes, MODE, GIVEN_PRIOR, BM,
                                 BN)  # fmt: skip
    for view in tl.static_range(2 if BOTH else 1):
        x = x_a if view == 0 else x_b
        row = (row_a if view == 0 else row_b) + tl.arange(0, BM)
        up, down = tiles.power_of_two_scale(tl.max(tl.abs(x), 1))
        x_high, x_low = tiles.two_halves(x * up[:, None])
        at = row[:, None].to(tl.int64) * chunk + tile * BN + tl.arange(0, BN)[None, :]
        tl.store(high_out + at, x_high)
        tl.store(low_out + at, x_low)
        tl.store(scale_out + row.to(tl.int64) * tl.num_programs(1) + tile, down)


@triton.jit(do_not_specialize=["span", "tiles_per_split", "words"])
def weighted_chunk(x_high, x_low, scales, sums_out, table, words, total, span, chunk, tiles_per_split,
                   BM: tl.constexpr, BN: tl.constexpr, GROUPS: tl.constexpr):  # fmt: skip
    """Adds `sum_j x_j w_j` over a chunk's codes to (splits, R, 128 * GROUPS): grid (row tiles, groups, splits).

    Each element belongs to one program, so the sum has a fixed order.
    """
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    group = tl.program_id(1)
    split = tl.program_id(2)
    sums = tl.zeros([BM, 128], tl.float32)
    num_tiles = chunk // BN
    for tile in range(split * tiles_per_split, tl.minimum((split + 1) * tiles_per_split, num_tiles)):
        at = row[:, None].to(tl.int64) * chunk + tile * BN + tl.arange(0, BN)[None, :]
        code = tl.minimum(tile * BN + tl.arange(0, BN), span - 1)
        part = tiles.product(tl.load(x_high + at), tl.load(x_low + at), tiles.sign_tile(table, code, words, group, 128))
        sums += part * tl.load(scales + row.to(tl.int64) * num_tiles + tile)[:, None]
    at = (split.to(tl.int64) * total + row)[:, None] * (128 * GROUPS) + group * 128 + tl.arange(0, 128)[None, :]
    tl.store(sums_out + at, tl.load(sums_out + at) + sums)


@triton.jit(do_not_specialize=["splits"])
def merge_weighted(sums_in, sums, stride, elements, splits, FIRST: tl.constexpr, BLOCK: tl.constexpr):
    """Adds the splits' sums of weighted codes, in order, in float64."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < elements
    value = tl.zeros([BLOCK], tl.float64)
    if not FIRST:
        value = tl.load(sums + at, mask=inside, other=0.0)
    for split in range(splits):
        value += tl.load(sums_in + tl.cast(split, tl.int64) * stride + at, mask=inside, other=0.0).to(tl.float64)
    tl.store(sums + at, value, mask=inside)


@triton.jit(do_not_specialize=["first_index", "key0", "key1", "factor", "words"])
def finish_sums(sums, best_share, code, positions, out_1, out_2, packed, words, first_index: tl.int64, key0, key1,
                n_pad, f, K, factor, F: tl.constexpr, KIND: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """`factor * (sums + best_share * w_best)` in the order of the coordinates: float32 (n, f) per view.

    Grid (n, views). A row without a best code here has the share 0: any code's signs will do.
    """
    row = tl.program_id(0)
    view = tl.program_id(1)
    at = view * n_pad + row
    k = tl.arange(0, BLOCK)
    inside = k < f
    k = tl.where(inside, k, 0)
    position = k
    if KIND == constants.KRONECKER:
        position = tl.load(positions + k)
    value = tl.load(sums + at.to(tl.int64) * K + position)
    best = k * 0 + tl.maximum(tl.load(code + at), 0)
    signs = bits.code_signs(best, k, positions, packed, words, first_index, key0, key1, F, KIND).to(tl.float64)
    value = ((value + tl.load(best_share + at) * signs) * factor).to(tl.float32)
    out = out_1 if view == 0 else out_2
    tl.store(out + row.to(tl.int64) * f + k, value, mask=inside)
