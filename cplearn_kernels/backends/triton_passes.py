"""Triton kernels that go over all codes: best codes, column sums, row sums, weighted codes, probabilities.

Every kernel works on a piece of the dictionary, codes `start` … `start + span - 1`, cut into tiles of BN codes (see
triton_tiles.py for the forms of a tile). Programs that own rows write one partial result per split of the codes, programs
that own codes one per split of the rows; triton_rows.py adds the parts up in a fixed order. Nothing is added to memory
that two programs share, so results do not depend on scheduling.

Rows of the batch come as two float16 halves (R, K), view 2 after view 1, `n_pad` rows each, and as rows of constants,
float32 (_, R), by the names below. With `s` the logit in powers of two, `d = s - best` and `u = d + SHIFT = log2(c p)`.
"""

import triton
import triton.language as tl

from . import triton_tiles as tiles

# Rows of the row constants.
SCALE = tl.constexpr(0)  # a product times this is the logit in powers of two; a power of two itself
BEST = tl.constexpr(1)  # the row's largest logit
INVERSE_SUM = tl.constexpr(2)  # p of the best code, 1 / sum 2^d; 0 for padding
SHIFT = tl.constexpr(3)  # log2(c) - log2(sum 2^d)
CENTRE = tl.constexpr(4)  # sum_j p_j g_j
TARGET = tl.constexpr(5)  # sum_j p_j u'_j, u' of the partner row
LOG_SUM = tl.constexpr(6)  # log2(sum 2^d)
NUM_CONSTANTS = 7

# What is summed over the codes, with weight x_j: see _tile_weights.
EXPECTED = tl.constexpr(0)
CENTRED = tl.constexpr(1)
REVERSE_KL = tl.constexpr(2)
CROSS_ENTROPY = tl.constexpr(3)
SECOND = tl.constexpr(4)
GIVEN = tl.constexpr(5)


@triton.jit
def _operand(tile, span, table, words, BM: tl.constexpr, BN: tl.constexpr, A: tl.constexpr, K: tl.constexpr,
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
def _logits(high, low, row_a, row_b, operand, left, right, table, words, PAIR: tl.constexpr, BM: tl.constexpr,
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
def _constant(rows, which: tl.constexpr, total, row, BM: tl.constexpr):
    return tl.load(rows + which * total + row + tl.arange(0, BM))


@triton.jit
def _below_best(s, rows, total, row, BM: tl.constexpr):
    """Logits in powers of two less the row's best, from products not yet scaled.

    At most 0: a tile of another shape may sum in another order, and at logits of 1e12 a rounding is 1e5.
    """
    scale = _constant(rows, SCALE, total, row, BM)[:, None]
    return tl.minimum(s * scale - _constant(rows, BEST, total, row, BM)[:, None], 0.0)


@triton.jit
def _probability(s, rows, total, row, BM: tl.constexpr):
    """(p, u) of products not yet scaled."""
    d = _below_best(s, rows, total, row, BM)
    p = tl.exp2(d) * _constant(rows, INVERSE_SUM, total, row, BM)[:, None]
    return p, d + _constant(rows, SHIFT, total, row, BM)[:, None]


@triton.jit(do_not_specialize=["start", "span", "tiles_per_split"])
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
    scale = _constant(rows, SCALE, total, row, BM)
    best = tl.full([BM], -float("inf"), tl.float32)
    others = tl.zeros([BM], tl.float64)  # the sum over codes below the best
    equal = tl.zeros([BM], tl.float64)  # how many codes share the best logit
    code = tl.zeros([BM], tl.int32)
    first = split * tiles_per_split
    for tile in range(first, tl.minimum(first + tiles_per_split, tl.cdiv(span, BN))):
        operand = _operand(tile, span, table, words, BM, BN, A, K, GROUPS, KRONECKER)
        s, _ = _logits(high, low, row, row, operand, left, right, table, words, False, BM, BN, A, K, GROUPS, KRONECKER)
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


@triton.jit(do_not_specialize=["span", "rows_per_split"])
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
    operand = _operand(tile, span, table, words, BM, BN, A, K, GROUPS, KRONECKER)
    sums = tl.zeros([BM, BN], tl.float32)
    largest = tl.full([BM, BN], -1e30, tl.float32)
    for offset in range(split * rows_per_split, tl.minimum((split + 1) * rows_per_split, n), BM):
        row = view * n_pad + offset
        s, _ = _logits(high, low, row, row, operand, left, right, table, words, False, BM, BN, A, K, GROUPS, KRONECKER)
        d = _below_best(s, rows, total, row, BM)
        if LOGS:
            u = d + _constant(rows, SHIFT, total, row, BM)[:, None]
            u = tl.where((offset + tl.arange(0, BM) < n)[:, None], u, -float("inf"))
            new = tl.maximum(largest, u)
            sums = sums * tl.exp2(largest - new) + tl.exp2(u - new)
            largest = new
        else:
            sums += tl.exp2(d) * _constant(rows, INVERSE_SUM, total, row, BM)[:, None]
    column = tile * BN + tiles.columns(BN, A, KRONECKER)
    at = (split * tl.num_programs(2) + view).to(tl.int64) * span + column
    if LOGS:
        top = tl.max(largest, 0)
        tl.store(best_out + at, top, mask=column < span)
        tl.store(sums_out + at, tl.sum(sums * tl.exp2(largest - top[None, :]), 0), mask=column < span)
    else:
        tl.store(sums_out + at, tl.sum(sums, 0), mask=column < span)


@triton.jit
def _special(best_a, best_b, tile, span, BN: tl.constexpr):
    """Whether a tile ends past the span or holds some row's best code: only then are there columns to leave out."""
    first = tile * BN
    here = (best_a >= first) & (best_a < first + BN) | (best_b >= first) & (best_b < first + BN)
    return ((first + BN > span).to(tl.int32) + tl.max(here.to(tl.int32), 0)) > 0


@triton.jit(do_not_specialize=["start", "span", "slope_stride", "tiles_per_split", "uniform"])
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
        operand = _operand(tile, span, table, words, BM, BN, A, K, GROUPS, KRONECKER)
        s_a, s_b = _logits(high, low, row_a, row_b, operand, left, right, table, words, PAIR, BM, BN, A, K, GROUPS,
                           KRONECKER)  # fmt: skip
        column = tile * BN + tiles.columns(BN, A, KRONECKER)
        inside = column < span
        slope_a = tl.load(slopes + column, mask=inside, other=0.0)[None, :]
        p_a, u_a = _probability(s_a, rows, total, row_a, BM)
        p_b = p_a
        u_b = u_a
        slope_b = slope_a
        if PAIR:
            slope_b = tl.load(slopes + slope_stride + column, mask=inside, other=0.0)[None, :]
            p_b, u_b = _probability(s_b, rows, total, row_b, BM)
        weight_a = p_a
        weight_b = p_b
        if LOGS:
            q = uniform
            if GIVEN_PRIOR:
                q = tl.load(prior + column, mask=inside, other=0.0)[None, :]
            weight_a = -q * tl.exp2(u_a - slope_a)
            weight_b = -q * tl.exp2(u_b - slope_b)
        if _special(best_a, best_b, tile, span, BN):
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


@triton.jit
def _loss_weight(p, u_partner, d, rows, total, row, prior_weight, slope, beta, CROSS: tl.constexpr, BM: tl.constexpr):
    """`p (g - sigma) - beta p (u' - t) + beta (p - p')` for `d = beta (p - p')`, beta in u's unit."""
    centre = _constant(rows, CENTRE, total, row, BM)[:, None]
    pull = beta * (u_partner - _constant(rows, TARGET, total, row, BM)[:, None])
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
        x_a = p * (tl.load(prior + at, mask=mask, other=0.0) - _constant(rows, CENTRE, total, row_a, BM)[:, None])
        x_b = x_a
    else:
        p_a, u_a = _probability(s_a, rows, total, row_a, BM)
        x_a = p_a
        x_b = p_a
        if MODE == CENTRED:
            slope_a = tl.load(slopes + column, mask=inside, other=0.0)[None, :]
            x_a = p_a * (slope_a - _constant(rows, CENTRE, total, row_a, BM)[:, None])
        elif MODE == SECOND:
            v = s_b * _constant(rows, SCALE, total, row_b, BM)[:, None]
            x_a = p_a * (v - _constant(rows, CENTRE, total, row_a, BM)[:, None])
        elif MODE != EXPECTED:
            best_b = tl.load(best + row_b + tl.arange(0, BM)) - start
            p_b, u_b = _probability(s_b, rows, total, row_b, BM)
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
        if _special(best_a, best_b, tile, span, BN):
            x_a = tl.where(inside[None, :] & (column[None, :] != best_a[:, None]), x_a, 0.0)
            x_b = tl.where(inside[None, :] & (column[None, :] != best_b[:, None]), x_b, 0.0)
    return x_a, x_b


@triton.jit(do_not_specialize=["start", "span", "slope_stride", "tiles_per_split", "uniform", "beta", "beta_ln2"])
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
        operand = _operand(tile, span, table, words, BM, BN, A, K, 1, KRONECKER)
        column = tile * BN + tiles.columns(BN, A, KRONECKER)
        s_a = tl.zeros([BM, BN], tl.float32)
        s_b = s_a
        if MODE != GIVEN:
            s_a, s_b = _logits(high, low, row_a, row_b, operand, left, right, table, words, PAIR, BM, BN, A, K, 1,
                               KRONECKER)  # fmt: skip
        x_a, x_b = _tile_weights(s_a, s_b, tile, rows, best, slopes, prior, total, row_a, row_b, start, span,
                                 slope_stride, column, uniform, beta, beta_ln2, num_rows, num_codes, MODE, GIVEN_PRIOR, BM,
                                 BN)  # fmt: skip
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


@triton.jit(do_not_specialize=["start", "span", "slope_stride", "uniform", "beta", "beta_ln2"])
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


@triton.jit(do_not_specialize=["span", "tiles_per_split"])
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


@triton.jit(do_not_specialize=["span", "out_stride"])
def probabilities(high, low, rows, out, table, words, total, num_rows, span, out_stride,
                  SCORES: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, A: tl.constexpr,
                  K: tl.constexpr, GROUPS: tl.constexpr, KRONECKER: tl.constexpr):  # fmt: skip
    """p, or with SCORES the scaled products themselves, into rows of `out`; grid (tiles, row tiles)."""
    tile = tl.program_id(0)
    row = tl.program_id(1) * BM
    left = tiles.sylvester(A)
    right = tiles.sylvester(BN // A if KRONECKER else 16)
    operand = _operand(tile, span, table, words, BM, BN, A, K, GROUPS, KRONECKER)
    s, _ = _logits(high, low, row, row, operand, left, right, table, words, False, BM, BN, A, K, GROUPS, KRONECKER)
    column = tile * BN + tiles.columns(BN, A, KRONECKER)
    value = s * _constant(rows, SCALE, total, row, BM)[:, None]
    if not SCORES:
        value, _ = _probability(s, rows, total, row, BM)
    at = row + tl.arange(0, BM)
    mask = (at < num_rows)[:, None] & (column < span)[None, :]
    tl.store(out + at[:, None].to(tl.int64) * out_stride + column[None, :].to(tl.int64), value, mask=mask)
