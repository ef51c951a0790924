"""Triton building blocks: Philox, ±1 tiles made from bits, logits of a tile, and the product that goes back.

A tile is BM rows of the batch times BN codes. FORM says where the codes come from and how the products are taken:

* KRONECKER: a Hadamard block of F = A * B >= 256 codes at once. With h viewed as an A x B matrix per row, the transform
  is H_A h H_B: two small tensor-core products (design: docs/performance.md, GPU part). Its columns come out in the order
  `b * A + a` for code `a * B + b`; see `columns`.
* HADAMARD (F <= 128), RADEMACHER, PACKED: one tensor-core product with a (BN, K) tile of ±1 made from bits in registers,
  GROUPS times K = 128 coordinates (or one K of 32, 64, 128).

Precision: data go in as two float16 halves after a power-of-two scale (2^-22 relative), ±1 is exact, sums are float32.
"""

import triton
import triton.language as tl

KRONECKER = tl.constexpr(0)
HADAMARD = tl.constexpr(1)
RADEMACHER = tl.constexpr(2)
PACKED = tl.constexpr(3)

# Last counter word of philox.py: what the bits are for.
_STREAM_RADEMACHER = tl.constexpr(0)
_STREAM_HADAMARD_SIGNS = tl.constexpr(1)


@triton.jit
def philox(c0, c1, c2, c3, key0, key1):
    """Philox4x32-10 of uint32 counters: four words. `philox.py` is the specification."""
    k0 = key0.to(tl.uint32)
    k1 = key1.to(tl.uint32)
    for _ in tl.static_range(10):
        high0 = tl.umulhi(c0, 0xD2511F53)
        high1 = tl.umulhi(c2, 0xCD9E8D57)
        low0 = c0 * 0xD2511F53
        low1 = c2 * 0xCD9E8D57
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def sign_words(index, group, key0, key1, STREAM: tl.constexpr):
    """The four words of coordinates `128 * group` … `128 * group + 127` of each `index` (int32), as uint32."""
    zero = index * 0
    stream = (zero + STREAM).to(tl.uint32)
    return philox(index.to(tl.uint32), zero.to(tl.uint32), (zero + group).to(tl.uint32), stream, key0, key1)


@triton.jit
def _table_word(table, row, words, word):
    """Word `word` of each row of an int32 table of `words` columns; 0 past its end."""
    pointers = table + row.to(tl.int64) * words + word
    inside = (row >= 0) & (row * 0 + word < words)
    return tl.load(pointers, mask=inside, other=0).to(tl.uint32, bitcast=True)


@triton.jit
def code_words(code, group, stop, table, words, key0, key1, F: tl.constexpr, FORM: tl.constexpr):
    """Four words of sign bits of codes (int32): coordinates `128 * group` and up; a set bit means -1."""
    if FORM == RADEMACHER:
        w0, w1, w2, w3 = sign_words(code, group, key0, key1, _STREAM_RADEMACHER)
    else:
        row = code % F if FORM == HADAMARD else tl.where(code < stop, code, -1)
        w0 = _table_word(table, row, words, 4 * group)
        w1 = _table_word(table, row, words, 4 * group + 1)
        w2 = _table_word(table, row, words, 4 * group + 2)
        w3 = _table_word(table, row, words, 4 * group + 3)
        if FORM == HADAMARD:
            d0, d1, d2, d3 = sign_words(code // F, group, key0, key1, _STREAM_HADAMARD_SIGNS)
            w0, w1, w2, w3 = w0 ^ d0, w1 ^ d1, w2 ^ d2, w3 ^ d3
    return w0, w1, w2, w3


@triton.jit
def sign_tile(w0, w1, w2, w3, K: tl.constexpr):
    """float16 tile (codes, K) of ±1 from the codes' words: 0x3C00 is 1.0, the bit goes to the sign."""
    k = tl.arange(0, K)[None, :]
    word = w0[:, None]
    if K > 32:
        word = tl.where(k < 32, word, w1[:, None])
    if K > 64:
        word = tl.where(k < 64, word, tl.where(k < 96, w2[:, None], w3[:, None]))
    bit = (word >> (k & 31).to(tl.uint32)) & 1
    return ((bit << 15) | 0x3C00).to(tl.uint16).to(tl.float16, bitcast=True)


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
    """uint16 (BM * A, B): 0x8000 where the block's sign vector, packed in position order, is -1; the same for all rows."""
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
def columns(BN: tl.constexpr, A: tl.constexpr, FORM: tl.constexpr):
    """int32 (BN,): the code, counted from the tile's first, that each column of a tile belongs to."""
    column = tl.arange(0, BN)
    if FORM == KRONECKER:
        column = (column % A) * (BN // A) + column // A
    return column


@triton.jit
def load_rows(data, row, BM: tl.constexpr, A: tl.constexpr, K: tl.constexpr, FORM: tl.constexpr):
    """float16 rows `row` … `row + BM - 1` of (rows, K) data; as (BM * A, B) for Kronecker products."""
    pointers = data + row.to(tl.int64) * K
    if FORM == KRONECKER:
        return tl.load(pointers + tl.arange(0, BM * A)[:, None] * (K // A) + tl.arange(0, K // A)[None, :])
    return tl.load(pointers + tl.arange(0, BM)[:, None] * K + tl.arange(0, K)[None, :])


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
def grouped_logits(high, low, row_a, row_b, code, stop, table, words, key0, key1, PAIR: tl.constexpr, BM: tl.constexpr,
                   BN: tl.constexpr, F: tl.constexpr, GROUPS: tl.constexpr, FORM: tl.constexpr):  # fmt: skip
    """(BM, BN) logits of rows at `row_a` and, if PAIR, at `row_b`, over GROUPS of 128 coordinates.

    A group's sum starts from zero and is added in float32 outside of the tensor core, whose accumulator truncates.
    """
    k = tl.arange(0, 128)[None, :]
    first = tl.arange(0, BM)[:, None].to(tl.int64) * (128 * GROUPS) + k
    sum_a = tl.zeros([BM, BN], tl.float32)
    sum_b = sum_a
    for group in range(GROUPS):
        w0, w1, w2, w3 = code_words(code, group, stop, table, words, key0, key1, F, FORM)
        signs = tl.trans(sign_tile(w0, w1, w2, w3, 128))
        at = row_a.to(tl.int64) * (128 * GROUPS) + group * 128 + first
        sum_a += product(tl.load(high + at), tl.load(low + at), signs)
        if PAIR:
            at = row_b.to(tl.int64) * (128 * GROUPS) + group * 128 + first
            sum_b += product(tl.load(high + at), tl.load(low + at), signs)
    return sum_a, sum_b
