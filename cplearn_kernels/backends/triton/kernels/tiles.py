"""Triton building blocks: ±1 tiles made from bits, the logits of a tile of codes, and the product that goes back.

A tile is BM rows of the batch times BN codes. Bits of the codes come from a table that sign_bits.py makes per piece of
the dictionary, one bit per coordinate. There are two forms of product:

* KRONECKER: a Hadamard block of F = A * B >= 256 codes at once. With h viewed as an A x B matrix per row, the transform
  is H_A h H_B: two small tensor-core products. The table holds one sign vector per block. Columns come out in the order
  `b * A + a` for code `a * B + b`; see `columns`.
* codes: one tensor-core product with a (BN, K) tile of ±1 made from bits in registers, over GROUPS times K = 128
  coordinates (or one K of 32, 64, 128).

Precision: data go in as two float16 halves after a power-of-two scale (2^-22 relative), ±1 is exact, sums are float32.
"""

import triton
import triton.language as tl


@triton.jit
def sign_tile(table, row, words, group, K: tl.constexpr):
    """float16 tile (codes, K) of ±1: coordinates `128 * group` and up of the codes at `row` of a table of bits.

    0x3C00 is 1.0; a set bit goes to the sign.
    """
    word = 4 * group + tl.arange(0, K // 32)
    pointers = table + row[:, None].to(tl.int64) * words + word[None, :]
    bits = tl.load(pointers, mask=(row[:, None] >= 0) & (word[None, :] < words), other=0)
    bits = (bits[:, :, None] << (31 - tl.arange(0, 32))[None, None, :]) >> 16
    bits = tl.reshape((bits & 0x8000) | 0x3C00, [row.shape[0], K])
    return bits.to(tl.uint16).to(tl.float16, bitcast=True)


@triton.jit
def sylvester(N: tl.constexpr):
    """The Sylvester-Hadamard matrix of order N <= 128, float16."""
    i = tl.arange(0, N)
    overlap = i[:, None] & i[None, :]
    overlap ^= overlap >> 4
    overlap ^= overlap >> 2
    overlap ^= overlap >> 1
    return (((overlap & 1) << 15) | 0x3C00).to(tl.uint16).to(tl.float16, bitcast=True)


@triton.jit
def block_signs(signs, block, BM: tl.constexpr, A: tl.constexpr, B: tl.constexpr):
    """uint16 (BM * A, B): 0x8000 where the block's sign vector, packed in position order, is -1; alike for all rows."""
    words = tl.load(signs + block * (A * B // 32) + tl.arange(0, A * B // 32))
    mask = ((words[:, None] << (31 - tl.arange(0, 32))[None, :]) >> 16) & 0x8000
    mask = tl.reshape(mask.to(tl.uint16), [1, A, B])
    return tl.reshape(tl.broadcast_to(mask, [BM, A, B]), [BM * A, B])


@triton.jit
def two_halves(x):
    """x as the sum of two float16: 22 bits of it."""
    high = x.to(tl.float16)
    return high, (x - high.to(tl.float32)).to(tl.float16)


@triton.jit
def product(high, low, signs):
    """`(high + low) @ signs`, summed in float32; the small half first."""
    return tl.dot(high, signs, tl.dot(low, signs))


@triton.jit
def power_of_two_scale(largest):
    """(up, down), powers of two with `up * down = 1`, such that `largest * up` lies in [2^7, 2^8).

    Sums of 128 such entries fit float16, as the second Kronecker product needs.
    """
    exponent = largest.to(tl.int32, bitcast=True) >> 23
    exponent = tl.minimum(tl.maximum(exponent, 8), 254)
    up = ((254 + 7 - exponent) << 23).to(tl.float32, bitcast=True)
    down = ((exponent - 7) << 23).to(tl.float32, bitcast=True)
    return up, down


@triton.jit
def columns(BN: tl.constexpr, A: tl.constexpr, KRONECKER: tl.constexpr):
    """int32 (BN,): the code, counted from the tile's first, that each column of a tile belongs to."""
    column = tl.arange(0, BN)
    if KRONECKER:
        column = (column % A) * (BN // A) + column // A
    return column


@triton.jit
def load_rows(data, row, BM: tl.constexpr, A: tl.constexpr, K: tl.constexpr, KRONECKER: tl.constexpr):
    """float16 rows `row` … `row + BM - 1` of (rows, K) data; as (BM * A, B) for Kronecker products."""
    if KRONECKER:
        offset = tl.arange(0, BM * A)[:, None] * (K // A) + tl.arange(0, K // A)[None, :]
    else:
        offset = tl.arange(0, BM)[:, None] * K + tl.arange(0, K)[None, :]
    return tl.load(data + row.to(tl.int64) * K + offset)


@triton.jit
def _flipped(x, mask):
    return (x.to(tl.uint16, bitcast=True) ^ mask).to(tl.float16, bitcast=True)


@triton.jit
def kronecker_logits(high, low, mask, left, right, BM: tl.constexpr, A: tl.constexpr, B: tl.constexpr):
    """(BM, A * B): `H_A (signs * h) H_B` per row, columns in tile order; `left` is H_A, `right` H_B."""
    half = product(_flipped(high, mask), _flipped(low, mask), right)
    half = tl.permute(tl.reshape(half, [BM, A, B]), [0, 2, 1])
    high, low = two_halves(half)
    both = product(tl.reshape(high, [BM * B, A]), tl.reshape(low, [BM * B, A]), left)
    return tl.reshape(both, [BM, A * B])


@triton.jit
def kronecker_back(x, mask, left, right, BM: tl.constexpr, A: tl.constexpr, B: tl.constexpr):
    """(BM * A, B), positions of each row: `signs * (H_A x H_B)` for weights x (BM, A * B) in tile order."""
    up, down = power_of_two_scale(tl.max(tl.abs(x), 1))
    high, low = two_halves(tl.reshape(x * up[:, None], [BM * B, A]))
    half = product(high, low, left)
    high, low = two_halves(half)
    high = tl.reshape(tl.permute(tl.reshape(high, [BM, B, A]), [0, 2, 1]), [BM * A, B])
    low = tl.reshape(tl.permute(tl.reshape(low, [BM, B, A]), [0, 2, 1]), [BM * A, B])
    down = tl.reshape(tl.broadcast_to(down[:, None], [BM, A]), [BM * A])
    both = product(high, low, right) * down[:, None]
    return (both.to(tl.uint32, bitcast=True) ^ (mask.to(tl.uint32) << 16)).to(tl.float32, bitcast=True)


@triton.jit
def codes_back(x, codes):
    """(BM, K): `x @ codes` for weights x (BM, BN) and a ±1 tile (BN, K); each row is scaled for itself."""
    up, down = power_of_two_scale(tl.max(tl.abs(x), 1))
    high, low = two_halves(x * up[:, None])
    return product(high, low, codes) * down[:, None]


@triton.jit
def grouped_logits(high, low, row_a, row_b, code, table, words, PAIR: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
                   GROUPS: tl.constexpr):  # fmt: skip
    """(BM, BN) logits of rows at `row_a` and, if PAIR, at `row_b`, with the table's rows `code`, over all groups.

    A group's sum starts from zero and is added in float32 outside of the tensor core, whose accumulator truncates.
    """
    first = tl.arange(0, BM)[:, None].to(tl.int64) * (128 * GROUPS) + tl.arange(0, 128)[None, :]
    sum_a = tl.zeros([BM, BN], tl.float32)
    sum_b = sum_a
    for group in range(GROUPS):
        signs = tl.trans(sign_tile(table, code, words, group, 128))
        at = row_a.to(tl.int64) * (128 * GROUPS) + group * 128 + first
        sum_a += product(tl.load(high + at), tl.load(low + at), signs)
        if PAIR:
            at = row_b.to(tl.int64) * (128 * GROUPS) + group * 128 + first
            sum_b += product(tl.load(high + at), tl.load(low + at), signs)
    return sum_a, sum_b
