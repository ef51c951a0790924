"""Triton kernels that go over all codes: best codes, column sums, row sums, probabilities.

Every kernel works on a piece of the dictionary, codes `start` … `start + span - 1`, cut into tiles of BN codes (see
tiles.py for the forms of a tile). Programs that own rows write one partial result per split of the codes, programs
that own codes one per split of the rows; rows.py adds the parts up in a fixed order. Nothing is added to memory
that two programs share, so results do not depend on scheduling.

Rows of the batch come as two float16 halves (R, K), view 2 after view 1, `n_pad` rows each, and as rows of constants,
float32 (_, R), by the names in constants.py. With `s` the logit in powers of two, `d = s - best` and
`u = d + SHIFT = log2(c p)`.
The codes may be a range of a dictionary's c codes: `best` and the constants are then those of all c, and a row whose
best code lies outside of the range has the code -1, which no column equals.
"""

import triton
import triton.language as tl

from . import tiles
from .constants import BEST, INVERSE_SUM, SCALE, SHIFT


@triton.jit
def tile_operand(tile, span, table, words, BM: tl.constexpr, BN: tl.constexpr, A: tl.constexpr, K: tl.constexpr,
             GROUPS: tl.constexpr, KRONECKER: tl.constexpr):  # fmt: skip
    """What the products of a tile need: a block's signs, a (BN, K) tile of codes, or the codes' rows of the table.

    Past the end of the span the last code stands in; its columns are masked wherever they would count.
    """
    row = tl.minimum(tile * BN + tl.arange(0, BN), span - 1)
    if KRONECKER:
        operand = tiles.block_signs(table, tile, BM, A, BN // A)
    elif GROUPS > 1:
        operand = row
    else:
        operand = tiles.sign_tile(table, row, words, 0, K)
    return operand


@triton.jit
def logits(high, low, row_a, row_b, operand, left, right, table, words, PAIR: tl.constexpr, BM: tl.constexpr,
            BN: tl.constexpr, A: tl.constexpr, K: tl.constexpr, GROUPS: tl.constexpr,
            KRONECKER: tl.constexpr):  # fmt: skip
    """Products (BM, BN) of the rows at `row_a` and, if PAIR, at `row_b` with a tile's codes, not yet scaled.

    Rows are read anew for every tile: from the first-level cache, and registers are what limits a tile.
    """
    if GROUPS > 1:
        s_a, s_b = tiles.grouped_logits(high, low, row_a, row_b, operand, table, words, PAIR, BM, BN, GROUPS)
    else:
        a_high = tiles.load_rows(high, row_a, BM, A, K, KRONECKER)
        a_low = tiles.load_rows(low, row_a, BM, A, K, KRONECKER)
        if KRONECKER:
            s_a = tiles.kronecker_logits(a_high, a_low, operand, left, right, BM, A, BN // A)
        else:
            s_a = tiles.product(a_high, a_low, tl.trans(operand))
        s_b = s_a
        if PAIR:
            b_high = tiles.load_rows(high, row_b, BM, A, K, KRONECKER)
            b_low = tiles.load_rows(low, row_b, BM, A, K, KRONECKER)
            if KRONECKER:
                s_b = tiles.kronecker_logits(b_high, b_low, operand, left, right, BM, A, BN // A)
            else:
                s_b = tiles.product(b_high, b_low, tl.trans(operand))
    return s_a, s_b


@triton.jit
def constant(rows, which: tl.constexpr, total, row, BM: tl.constexpr):
    return tl.load(rows + which * total + row + tl.arange(0, BM))


@triton.jit
def below_best(s, rows, total, row, BM: tl.constexpr):
    """Logits in powers of two less the row's best, from products not yet scaled.

    At most 0: a tile of another shape may sum in another order, and at logits of 1e12 a rounding is 1e5.
    """
    scale = constant(rows, SCALE, total, row, BM)[:, None]
    return tl.minimum(s * scale - constant(rows, BEST, total, row, BM)[:, None], 0.0)


@triton.jit
def probability(s, rows, total, row, BM: tl.constexpr):
    """(p, u) of products not yet scaled."""
    d = below_best(s, rows, total, row, BM)
    p = tl.exp2(d) * constant(rows, INVERSE_SUM, total, row, BM)[:, None]
    return p, d + constant(rows, SHIFT, total, row, BM)[:, None]


@triton.jit(do_not_specialize=["start", "span", "tiles_per_split", "words"])
def best_codes(high, low, rows, best_out, others_out, code_out, table, words, total, start, span,
               tiles_per_split, BM: tl.constexpr, BN: tl.constexpr, A: tl.constexpr, K: tl.constexpr,
               GROUPS: tl.constexpr, KRONECKER: tl.constexpr):  # fmt: skip
    """Per row: the largest logit, its code (the first of equals), the sum of 2^(s - best) over the other codes.

    Outputs (splits, R). `reference.projector_logsumexp` is ln 2 * (best + log2(1 + others)).
    """
    row = tl.program_id(0) * BM
    split = tl.program_id(1)
    left = tiles.sylvester(A)
    right = tiles.sylvester(BN // A if KRONECKER else 16)
    scale = constant(rows, SCALE, total, row, BM)
    best = tl.full([BM], -float("inf"), tl.float32)
    others = tl.zeros([BM], tl.float64)  # the sum over codes below the best
    equal = tl.zeros([BM], tl.float64)  # how many codes share the best logit
    code = tl.zeros([BM], tl.int32)
    first = split * tiles_per_split
    for tile in range(first, tl.minimum(first + tiles_per_split, tl.cdiv(span, BN))):
        operand = tile_operand(tile, span, table, words, BM, BN, A, K, GROUPS, KRONECKER)
        s, _ = logits(high, low, row, row, operand, left, right, table, words, False, BM, BN, A, K, GROUPS, KRONECKER)
        column = tile * BN + tiles.columns(BN, A, KRONECKER)
        s *= scale[:, None]
        if (tile + 1) * BN > span:
            s = tl.where((column < span)[None, :], s, -float("inf"))
        tile_best = tl.max(s, 1)
        new = tl.maximum(best, tile_best)
        below = tl.exp2(s - new[:, None])
        moved = tile_best > best
        others = tl.where(moved, (others + equal) * tl.exp2(best - new).to(tl.float64), others)
        # A new best, or one more code that equals it, is rare; counting and finding it stay out of the common path.
        if tl.max((tile_best >= best).to(tl.int32), 0) > 0:
            same = s == new[:, None]
            below = tl.where(same, 0.0, below)
            count = tl.sum(same.to(tl.float32), 1).to(tl.float64)
            found = tl.min(tl.where(same, column[None, :], 0x7FFFFFFF), 1) + start
            equal = tl.where(moved, count, equal + count)
            code = tl.where(moved, found, code)
        others += tl.sum(below, 1).to(tl.float64)
        best = new
    at = split.to(tl.int64) * total + row + tl.arange(0, BM)
    tl.store(best_out + at, best)
    tl.store(others_out + at, others + equal - 1.0)
    tl.store(code_out + at, code)


@triton.jit(do_not_specialize=["span", "rows_per_split", "n", "words"])
def column_sums(high, low, rows, sums_out, best_out, table, words, total, n, n_pad, span, rows_per_split,
                LOGS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, A: tl.constexpr,
                K: tl.constexpr, GROUPS: tl.constexpr, KRONECKER: tl.constexpr):  # fmt: skip
    """Per code, the sum over a view's rows of p; with LOGS of c p, as a sum of powers of two relative to `best_out`.

    Grid (tiles, splits of the rows, views); outputs (splits, views, span). `reference.mean_assignment` is the sum / n.
    """
    tile = tl.program_id(0)
    split = tl.program_id(1)
    view = tl.program_id(2)
    left = tiles.sylvester(A)
    right = tiles.sylvester(BN // A if KRONECKER else 16)
    operand = tile_operand(tile, span, table, words, BM, BN, A, K, GROUPS, KRONECKER)
    sums = tl.zeros([BM, BN], tl.float32)
    largest = tl.full([BM, BN], -1e30, tl.float32)
    for offset in range(split * rows_per_split, tl.minimum((split + 1) * rows_per_split, n), BM):
        row = view * n_pad + offset
        s, _ = logits(high, low, row, row, operand, left, right, table, words, False, BM, BN, A, K, GROUPS, KRONECKER)
        d = below_best(s, rows, total, row, BM)
        if LOGS:
            u = d + constant(rows, SHIFT, total, row, BM)[:, None]
            u = tl.where((offset + tl.arange(0, BM) < n)[:, None], u, -float("inf"))
            new = tl.maximum(largest, u)
            sums = sums * tl.exp2(largest - new) + tl.exp2(u - new)
            largest = new
        else:
            sums += tl.exp2(d) * constant(rows, INVERSE_SUM, total, row, BM)[:, None]
    column = tile * BN + tiles.columns(BN, A, KRONECKER)
    at = (split * tl.num_programs(2) + view).to(tl.int64) * span + column
    if LOGS:
        top = tl.max(largest, 0)
        tl.store(best_out + at, top, mask=column < span)
        tl.store(sums_out + at, tl.sum(sums * tl.exp2(largest - top[None, :]), 0), mask=column < span)
    else:
        tl.store(sums_out + at, tl.sum(sums, 0), mask=column < span)


@triton.jit
def special(best_a, best_b, tile, span, BN: tl.constexpr):
    """Whether a tile ends past the span or holds some row's best code: only then are there columns to leave out."""
    first = tile * BN
    here = (best_a >= first) & (best_a < first + BN) | (best_b >= first) & (best_b < first + BN)
    return ((first + BN > span).to(tl.int32) + tl.max(here.to(tl.int32), 0)) > 0


@triton.jit(do_not_specialize=["start", "span", "slope_stride", "tiles_per_split", "uniform", "words"])
def row_sums(high, low, rows, best, slopes, prior, centre_out, target_out, table, words, total, n_pad,
             start, span, slope_stride, tiles_per_split, uniform, PAIR: tl.constexpr, LOGS: tl.constexpr,
             GIVEN_PRIOR: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, A: tl.constexpr, K: tl.constexpr,
             GROUPS: tl.constexpr, KRONECKER: tl.constexpr):  # fmt: skip
    """Per row, over all codes but its best: sum p g and, if PAIR, sum p u' with u' the partner row's log2(c p).

    `slopes` (views, _), rows `slope_stride` apart, holds g; with LOGS it holds log2(c p̄), and p g is -q 2^(u - slope).
    Outputs (splits, R), float64. The sums sigma and t of docs/mathematics.md, less the best code's term.
    """
    row_a = tl.program_id(0) * BM
    row_b = row_a + n_pad
    split = tl.program_id(1)
    left = tiles.sylvester(A)
    right = tiles.sylvester(BN // A if KRONECKER else 16)
    best_a = tl.load(best + row_a + tl.arange(0, BM)) - start
    best_b = best_a
    if PAIR:
        best_b = tl.load(best + row_b + tl.arange(0, BM)) - start
    centre_a = tl.zeros([BM], tl.float64)
    centre_b = tl.zeros([BM], tl.float64)
    target_a = tl.zeros([BM], tl.float64)
    target_b = tl.zeros([BM], tl.float64)
    first = split * tiles_per_split
    for tile in range(first, tl.minimum(first + tiles_per_split, tl.cdiv(span, BN))):
        operand = tile_operand(tile, span, table, words, BM, BN, A, K, GROUPS, KRONECKER)
        s_a, s_b = logits(high, low, row_a, row_b, operand, left, right, table, words, PAIR, BM, BN, A, K, GROUPS,
                           KRONECKER)  # fmt: skip
        column = tile * BN + tiles.columns(BN, A, KRONECKER)
        inside = column < span
        slope_a = tl.load(slopes + column, mask=inside, other=0.0)[None, :]
        p_a, u_a = probability(s_a, rows, total, row_a, BM)
        p_b = p_a
        u_b = u_a
        slope_b = slope_a
        if PAIR:
            slope_b = tl.load(slopes + slope_stride + column, mask=inside, other=0.0)[None, :]
            p_b, u_b = probability(s_b, rows, total, row_b, BM)
        weight_a = p_a
        weight_b = p_b
        if LOGS:
            q = uniform
            if GIVEN_PRIOR:
                q = tl.load(prior + column, mask=inside, other=0.0)[None, :]
            weight_a = -q * tl.exp2(u_a - slope_a)
            weight_b = -q * tl.exp2(u_b - slope_b)
        if special(best_a, best_b, tile, span, BN):
            keep_a = inside[None, :] & (column[None, :] != best_a[:, None])
            keep_b = inside[None, :] & (column[None, :] != best_b[:, None])
            p_a = tl.where(keep_a, p_a, 0.0)
            p_b = tl.where(keep_b, p_b, 0.0)
            weight_a = tl.where(keep_a, weight_a, 0.0)
            weight_b = tl.where(keep_b, weight_b, 0.0)
        if LOGS:
            centre_a += tl.sum(weight_a, 1).to(tl.float64)
        else:
            centre_a += tl.sum(p_a * slope_a, 1).to(tl.float64)
        if PAIR:
            if LOGS:
                centre_b += tl.sum(weight_b, 1).to(tl.float64)
            else:
                centre_b += tl.sum(p_b * slope_b, 1).to(tl.float64)
            target_a += tl.sum(p_a * u_b, 1).to(tl.float64)
            target_b += tl.sum(p_b * u_a, 1).to(tl.float64)
    at = split.to(tl.int64) * total + row_a + tl.arange(0, BM)
    tl.store(centre_out + at, centre_a)
    if PAIR:
        tl.store(centre_out + at + n_pad, centre_b)
        tl.store(target_out + at, target_a)
        tl.store(target_out + at + n_pad, target_b)


@triton.jit(do_not_specialize=["span", "out_stride", "num_rows", "words"])
def probabilities(high, low, rows, out, table, words, total, num_rows, span, out_stride,
                  SCORES: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, A: tl.constexpr,
                  K: tl.constexpr, GROUPS: tl.constexpr, KRONECKER: tl.constexpr):  # fmt: skip
    """p, or with SCORES the scaled products themselves, into rows of `out`; grid (tiles, row tiles)."""
    tile = tl.program_id(0)
    row = tl.program_id(1) * BM
    left = tiles.sylvester(A)
    right = tiles.sylvester(BN // A if KRONECKER else 16)
    operand = tile_operand(tile, span, table, words, BM, BN, A, K, GROUPS, KRONECKER)
    s, _ = logits(high, low, row, row, operand, left, right, table, words, False, BM, BN, A, K, GROUPS, KRONECKER)
    column = tile * BN + tiles.columns(BN, A, KRONECKER)
    value = s * constant(rows, SCALE, total, row, BM)[:, None]
    if not SCORES:
        value, _ = probability(s, rows, total, row, BM)
    at = row + tl.arange(0, BM)
    mask = (at < num_rows)[:, None] & (column < span)[None, :]
    tl.store(out + at[:, None].to(tl.int64) * out_stride + column[None, :].to(tl.int64), value, mask=mask)
