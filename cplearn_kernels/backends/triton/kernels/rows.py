"""Triton kernels with O(n f) or O(c) work: preparing rows, adding partial results in order, constants.

Names and layouts are those of passes.py. What decides digits is float64: these kernels touch each row, code or
partial sum once.

A row's sums over the codes are rows of a float64 matrix (4, views * n), by the names in constants.py, without padding:
over the codes of a range, until the ranks that share the codes have added theirs.
"""

import triton
import triton.language as tl

from . import sign_bits as bits
from . import tiles

# isort: off
from .constants import (
    BEST, BEST_WEIGHT, CENTRE, CENTRE_SUM, CROSS_ENTROPY, CROSS_TERM, EXPECTED, INVERSE_SUM, LN_2, LOG2_E, REVERSE_KL,
    SCALE, SHIFT, TARGET, TARGET_SUM,
)  # fmt: skip
# isort: on


@triton.jit(do_not_specialize=["factor_1", "factor_2"])
def prepare_rows(h1, h2, coordinates, high, low, rows, n_pad, total, row_stride_1, stride_1, row_stride_2, stride_2,
                 factor_1, factor_2, K, BLOCK: tl.constexpr):  # fmt: skip
    """`factor * h` of each view as two float16 halves in the order of `coordinates`, and the SCALE to undo it.

    Grid (n, views). Position k holds coordinate `coordinates[k]`, 0 where that is -1. A row that holds a NaN or an
    infinity becomes zeros with scale NaN.
    """
    row = tl.program_id(0)
    view = tl.program_id(1)
    k = tl.arange(0, BLOCK)
    coordinate = tl.load(coordinates + k, mask=k < K, other=-1).to(tl.int64)
    mask = coordinate >= 0
    if view == 0:
        x = tl.load(h1 + row.to(tl.int64) * row_stride_1 + coordinate * stride_1, mask=mask, other=0.0).to(tl.float32)
        x *= factor_1
    else:
        x = tl.load(h2 + row.to(tl.int64) * row_stride_2 + coordinate * stride_2, mask=mask, other=0.0).to(tl.float32)
        x *= factor_2
    finite = tl.abs(x) < float("inf")
    bad = tl.sum((finite == 0).to(tl.int32), 0) > 0
    x = tl.where(finite, x, 0.0)
    up, down = tiles.power_of_two_scale(tl.max(tl.abs(x), 0))
    x_high, x_low = tiles.two_halves(x * (up * tl.where(bad, 0.0, 1.0)))
    at = (view * n_pad + row).to(tl.int64) * K + k
    tl.store(high + at, x_high, mask=k < K)
    tl.store(low + at, x_low, mask=k < K)
    tl.store(rows + SCALE * total + view * n_pad + row, tl.where(bad, float("nan"), down))


@triton.jit(do_not_specialize=["count", "splits"])
def merge_best(best_in, others_in, code_in, best, others, code, count, total, splits, FIRST: tl.constexpr,
               BLOCK: tl.constexpr):  # fmt: skip
    """Joins the splits' (best, others, code) of `count` rows, in order, with what earlier spans left.

    Of equal logits the first stays the best.
    """
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < count
    if FIRST:
        top = tl.full([BLOCK], -float("inf"), tl.float32)
        rest = tl.zeros([BLOCK], tl.float64) - 1.0
        found = tl.zeros([BLOCK], tl.int32)
    else:
        top = tl.load(best + row, mask=inside, other=0.0)
        rest = tl.load(others + row, mask=inside, other=0.0)
        found = tl.load(code + row, mask=inside, other=0)
    for split in range(splits):
        at = tl.cast(split, tl.int64) * total + row
        new_top = tl.load(best_in + at, mask=inside, other=0.0)
        new_rest = tl.load(others_in + at, mask=inside, other=0.0)
        new_found = tl.load(code_in + at, mask=inside, other=0)
        higher = new_top > top
        highest = tl.maximum(top, new_top)
        shrink_old = tl.where(top == highest, 1.0, tl.exp2(top - highest)).to(tl.float64)
        shrink_new = tl.where(new_top == highest, 1.0, tl.exp2(new_top - highest)).to(tl.float64)
        rest = tl.where(higher, (rest + 1.0) * shrink_old + new_rest, rest + (new_rest + 1.0) * shrink_new)
        found = tl.where(higher, new_found, found)
        top = highest
    tl.store(best + row, top, mask=inside)
    tl.store(others + row, rest, mask=inside)
    tl.store(code + row, found, mask=inside)


@triton.jit
def _log1p(x):
    """log(1 + x) for float64 x >= 0, as float64 of single precision relative to the result."""
    small = x * (1.0 - x * (0.5 - x * (0.3333333333333333 - x * 0.25)))
    return tl.where(x < 0.01, small, tl.log(1.0 + x))


@triton.jit(do_not_specialize=["log2_codes", "n", "count"])
def row_constants(best, others, rows, n, n_pad, count, total, log2_codes, BLOCK: tl.constexpr):
    """BEST, INVERSE_SUM, SHIFT of `count` rows; NaN where the row is not finite, INVERSE_SUM 0 in padding."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < count
    top = tl.load(best + row, mask=inside, other=0.0)
    rest = tl.load(others + row, mask=inside, other=0.0)
    scale = tl.load(rows + SCALE * total + row, mask=inside, other=1.0)
    bad = scale != scale
    log_sum = (_log1p(rest) * LOG2_E).to(tl.float32)
    inverse = tl.where(row % n_pad < n, (1.0 / (1.0 + rest)).to(tl.float32), 0.0)
    tl.store(rows + BEST * total + row, tl.where(bad, float("nan"), top), mask=inside)
    tl.store(rows + INVERSE_SUM * total + row, tl.where(bad, float("nan"), inverse), mask=inside)
    tl.store(rows + SHIFT * total + row, log2_codes - log_sum, mask=inside)


@triton.jit(do_not_specialize=["first_index", "key0", "key1", "words"])
def products_at_best(high, low, rows, code, out, coordinates, positions, packed, words, first_index: tl.int64, key0,
                     key1, n_pad, total, K, F: tl.constexpr, KIND: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """The partner row's logit (in powers of two) at each row's best code, 0 if that is none here; grid (n, views)."""
    row = tl.program_id(1) * n_pad + tl.program_id(0)
    partner = (row + n_pad) % total
    k = tl.arange(0, BLOCK)
    coordinate = tl.load(coordinates + k, mask=k < K, other=-1)
    best = coordinate * 0 + tl.load(code + row)
    mask = (coordinate >= 0) & (best >= 0)
    coordinate = tl.maximum(coordinate, 0)
    signs = bits.code_signs(tl.maximum(best, 0), coordinate, positions, packed, words, first_index, key0, key1, F, KIND)
    at = partner.to(tl.int64) * K + k
    x = tl.load(high + at, mask=mask, other=0.0).to(tl.float32) + tl.load(low + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row, tl.sum(x * signs, 0) * tl.load(rows + SCALE * total + partner))


@triton.jit(do_not_specialize=["n_inverse", "codes_over_n", "uniform", "span", "slope_stride", "splits"])
def finish_columns(sums, best, prior, slopes, prior_sums, splits, span, slope_stride, n_inverse, codes_over_n, uniform,
                   MODE: tl.constexpr, GIVEN_PRIOR: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """p̄ of each code and what the loss needs of it. Grid (blocks of codes, views).

    `slopes` gets p̄ (EXPECTED), g = ln(p̄ / q) (REVERSE_KL) or log2(c p̄) (CROSS_ENTROPY); `prior_sums` (views, blocks),
    float64, the blocks' parts of the prior term.
    """
    view = tl.program_id(1)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < span
    views = tl.num_programs(1)
    q = uniform
    if GIVEN_PRIOR:
        q = tl.load(prior + column, mask=inside, other=1.0)
    top = tl.full([BLOCK], -1e30, tl.float32)
    if MODE == CROSS_ENTROPY:
        for split in range(splits):
            at = (split * views + view).to(tl.int64) * span + column
            top = tl.maximum(top, tl.load(best + at, mask=inside, other=0.0))
    mass = tl.zeros([BLOCK], tl.float32)
    for split in range(splits):
        at = (split * views + view).to(tl.int64) * span + column
        part = tl.load(sums + at, mask=inside, other=1.0)
        if MODE == CROSS_ENTROPY:
            part *= tl.exp2(tl.load(best + at, mask=inside, other=0.0) - top)
        mass += part
    if MODE == EXPECTED:
        value = mass * n_inverse
        term = value * 0.0
    elif MODE == REVERSE_KL:
        # Where p̄ underflows, p is 0 in every row and the term is 0: any finite g will do.
        ratio = mass * n_inverse / q if GIVEN_PRIOR else mass * codes_over_n
        value = tl.log(tl.where(ratio < 1.1754943508222875e-38, 1.1754943508222875e-38, ratio))  # keeps a NaN
        term = mass * n_inverse * value
    else:
        value = top + tl.log2(mass * n_inverse)
        log2_codes = tl.log2(codes_over_n / n_inverse)
        term = -q * (value - log2_codes) * LN_2
    tl.store(slopes + view.to(tl.int64) * slope_stride + column, value, mask=inside)
    if MODE != EXPECTED:
        term = tl.where(inside, term, 0.0).to(tl.float64)
        tl.store(prior_sums + view * tl.num_programs(0) + tl.program_id(0), tl.sum(term, 0))


@triton.jit
def _row_of_sums(row, n, n_pad, total):
    """(whether a row is no padding, its place in a row of the row sums, how far these lie apart)."""
    view = row // n_pad
    place = row % n_pad
    return (row < total) & (place < n), view * n + place, total // n_pad * n


@triton.jit(do_not_specialize=["start", "span", "slope_stride", "uniform", "splits", "n"])
def merge_row_sums(centre_in, target_in, sums, slopes, prior, code, rows, splits, n, total, n_pad, start, span,
                   slope_stride, uniform, PAIR: tl.constexpr, LOGS: tl.constexpr, GIVEN_PRIOR: tl.constexpr,
                   FIRST: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Adds the splits' sums, in order, and notes `p g` of a row's best code when that lies in the span."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside, place, stride = _row_of_sums(row, n, n_pad, total)
    centre_sum = tl.zeros([BLOCK], tl.float64)
    target_sum = tl.zeros([BLOCK], tl.float64)
    weight = tl.zeros([BLOCK], tl.float64)
    if not FIRST:
        centre_sum = tl.load(sums + CENTRE_SUM * stride + place, mask=inside, other=0.0)
        target_sum = tl.load(sums + TARGET_SUM * stride + place, mask=inside, other=0.0)
        weight = tl.load(sums + BEST_WEIGHT * stride + place, mask=inside, other=0.0)
    for split in range(splits):
        at = tl.cast(split, tl.int64) * total + row
        centre_sum += tl.load(centre_in + at, mask=inside, other=0.0)
        if PAIR:
            target_sum += tl.load(target_in + at, mask=inside, other=0.0)
    column = tl.load(code + row, mask=inside, other=0) - start
    here = inside & (column >= 0) & (column < span)
    column = tl.where(here, column, 0)
    slope = tl.load(slopes + (row // n_pad).to(tl.int64) * slope_stride + column, mask=here, other=0.0)
    if LOGS:
        q = uniform
        if GIVEN_PRIOR:
            q = tl.load(prior + column, mask=here, other=0.0)
        shift = tl.load(rows + SHIFT * total + row, mask=inside, other=0.0)
        found = -q * tl.exp2(shift - slope)
    else:
        found = slope * tl.load(rows + INVERSE_SUM * total + row, mask=inside, other=0.0)
    tl.store(sums + CENTRE_SUM * stride + place, centre_sum, mask=inside)
    tl.store(sums + TARGET_SUM * stride + place, target_sum, mask=inside)
    tl.store(sums + BEST_WEIGHT * stride + place, tl.where(here, found.to(tl.float64), weight), mask=inside)


@triton.jit
def _partner_at_best(others, at_best, rows, row, inside, n_pad, total, total_codes):
    """(u', p', rounding) of the partner row at each row's best code; u' as the passes form it, with a float32 SHIFT.

    `rounding` is what that SHIFT lacks. The p of a row sum to 1, so it is all that the sum of p u' lacks as well.
    """
    partner = (row + n_pad) % total
    shift = tl.load(rows + SHIFT * total + partner, mask=inside, other=0.0).to(tl.float64)
    best = tl.load(rows + BEST * total + partner, mask=inside, other=0.0)
    d = tl.minimum(tl.load(at_best + row, mask=inside, other=0.0) - best, 0.0)
    inverse = tl.load(rows + INVERSE_SUM * total + partner, mask=inside, other=0.0)
    rest = tl.load(others + partner, mask=inside, other=0.0)
    exact = (tl.log(total_codes.to(tl.float64)) - _log1p(rest)) * LOG2_E
    return d.to(tl.float64) + shift, (tl.exp2(d) * inverse).to(tl.float64), exact - shift


@triton.jit(do_not_specialize=["n", "total_codes"])
def cross_term(sums, others, code, at_best, rows, n, n_pad, total, total_codes: tl.int64, BLOCK: tl.constexpr):
    """CROSS_TERM of each row from its TARGET_SUM and, where the best code is one of this range, its term in float64."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside, place, stride = _row_of_sums(row, n, n_pad, total)
    u_partner, _, rounding = _partner_at_best(others, at_best, rows, row, inside, n_pad, total, total_codes)
    p = 1.0 / (1.0 + tl.load(others + row, mask=inside, other=0.0))
    # One rank has a row's best code: it alone adds what the SHIFT of the terms of all codes lacks.
    here = tl.load(code + row, mask=inside, other=-1) >= 0
    value = tl.load(sums + TARGET_SUM * stride + place, mask=inside, other=0.0)
    value += tl.where(here, p * u_partner + rounding, 0.0)
    tl.store(sums + CROSS_TERM * stride + place, value * LN_2, mask=inside)


@triton.jit(do_not_specialize=["beta", "n", "total_codes"])
def finish_row_sums(sums, others, code, at_best, rows, best_share, n, n_pad, total, total_codes: tl.int64, beta,
                    PAIR: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """CENTRE and TARGET of each row from the sums over all codes; the weight of its best code, 0 if not in the range.

    The best code's weight is p [(1 - p) g - sum of the others' p g] and so on, with 1 - p = others / (1 + others):
    near the optimum that keeps the digits that `g - sigma` would lose.
    """
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside, place, stride = _row_of_sums(row, n, n_pad, total)
    rest = tl.load(others + row, mask=inside, other=0.0)
    p = 1.0 / (1.0 + rest)
    away = rest * p
    weight = tl.load(sums + BEST_WEIGHT * stride + place, mask=inside, other=0.0)
    centre_rest = tl.load(sums + CENTRE_SUM * stride + place, mask=inside, other=0.0)
    share = away * weight - p * centre_rest
    tl.store(rows + CENTRE * total + row, (centre_rest + weight).to(tl.float32), mask=row < total)
    if PAIR:
        u_partner, p_partner, rounding = _partner_at_best(others, at_best, rows, row, inside, n_pad, total, total_codes)
        target_rest = tl.load(sums + TARGET_SUM * stride + place, mask=inside, other=0.0)
        # As the passes round u', which it is taken from.
        target = tl.load(sums + CROSS_TERM * stride + place, mask=inside, other=0.0) / LN_2 - rounding
        tl.store(rows + TARGET * total + row, target.to(tl.float32), mask=row < total)
        share -= beta * LN_2 * p * (away * u_partner - target_rest)
        share += beta * (p - p_partner)
    here = tl.load(code + row, mask=inside, other=-1) >= 0
    tl.store(best_share + row, tl.where(here, share, 0.0), mask=row < total)
