"""Triton kernels that make the bits of the codes: Philox, tables of sign bits for the passes, single coordinates.

The passes read bits from a table of one piece of the dictionary, a bit per coordinate, made here just before. Made
inside of them, Triton would repeat Philox in every lane that holds a coordinate of the same code: 30 integer
instructions a logit at f = 128, where all else takes 25.
"""

import triton
import triton.language as tl

from .constants import HADAMARD, PACKED, RADEMACHER

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
def _philox_words(index, group, key0, key1, STREAM: tl.constexpr):
    """The four words of coordinates `128 * group` … `128 * group + 127` of each `index` (int64), as uint32."""
    zero = index * 0
    stream = (zero + STREAM).to(tl.uint32)
    return philox(index.to(tl.uint32), (index >> 32).to(tl.uint32), (zero + group).to(tl.uint32), stream, key0, key1)


@triton.jit
def _pick(which, w0, w1, w2, w3):
    return tl.where(which == 0, w0, tl.where(which == 1, w1, tl.where(which == 2, w2, w3)))


@triton.jit
def _sign_bit(index, k, key0, key1, STREAM: tl.constexpr):
    """Bit of coordinate k of each `index` (int64), 0 or 1, uint32."""
    w0, w1, w2, w3 = _philox_words(index, k >> 7, key0, key1, STREAM)
    return (_pick((k >> 5) & 3, w0, w1, w2, w3) >> (k & 31).to(tl.uint32)) & 1


@triton.jit
def _parity(x):
    """The parity of the low 16 bits of a non-negative int32, as uint32."""
    x ^= x >> 8
    x ^= x >> 4
    x ^= x >> 2
    x ^= x >> 1
    return (x & 1).to(tl.uint32)


@triton.jit
def _philox_index(first_index, code, F: tl.constexpr):
    """int64: what Philox counts for codes (int32) of a range that begins with `first_index`: blocks of F, or codes.

    `first_index` is 64 bits wide in the signature of every kernel that takes one: a range may begin beyond 2^32, and a
    type that followed the value would compile each kernel twice.
    """
    return first_index.to(tl.int64) + code // F


@triton.jit(do_not_specialize=["first_index", "key0", "key1", "first", "count", "groups"])
def pack_codes(out, sylvester, first_index: tl.int64, key0, key1, first, count, groups, F: tl.constexpr,
               KIND: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """The sign bits of codes `first` … `first + count - 1`: int32 (count, 4 * groups), bit k mod 32 of word k div 32.

    RADEMACHER: Philox's bits themselves (F = 1). HADAMARD: the block's signs against the bits of the Sylvester matrix,
    `sylvester` (F, 4 * groups).
    """
    item = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = item < count.to(tl.int64) * groups
    code = (item // groups).to(tl.int32) + first
    group = (item % groups).to(tl.int32)
    w0, w1, w2, w3 = _philox_words(_philox_index(first_index, code, F), group, key0, key1,
                                   _STREAM_RADEMACHER if KIND == RADEMACHER else _STREAM_HADAMARD_SIGNS)  # fmt: skip
    if KIND == HADAMARD:
        at = sylvester + ((code % F) * groups + group) * 4
        w0 ^= tl.load(at).to(tl.uint32, bitcast=True)
        w1 ^= tl.load(at + 1).to(tl.uint32, bitcast=True)
        w2 ^= tl.load(at + 2).to(tl.uint32, bitcast=True)
        w3 ^= tl.load(at + 3).to(tl.uint32, bitcast=True)
    at = out + item * 4
    tl.store(at, w0.to(tl.int32, bitcast=True), mask=inside)
    tl.store(at + 1, w1.to(tl.int32, bitcast=True), mask=inside)
    tl.store(at + 2, w2.to(tl.int32, bitcast=True), mask=inside)
    tl.store(at + 3, w3.to(tl.int32, bitcast=True), mask=inside)


@triton.jit(do_not_specialize=["first_index", "key0", "key1", "num_words"])
def pack_block_signs(out, coordinates, first_index: tl.int64, key0, key1, num_words, F: tl.constexpr,
                     BLOCK: tl.constexpr):  # fmt: skip
    """The sign vectors of Hadamard blocks from `first_index` on, a bit per position: int32 (blocks, F / 32).

    A position's bit is that of the coordinate that lies there (any bit where none does).
    """
    word = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = word < num_words
    bit = tl.arange(0, 32)[None, :]
    place = (word % (F // 32))[:, None] * 32 + bit
    coordinate = tl.maximum(tl.load(coordinates + place), 0)
    block = _philox_index(first_index, word, F // 32)[:, None] + place * 0
    signs = _sign_bit(block, coordinate, key0, key1, _STREAM_HADAMARD_SIGNS).to(tl.int32, bitcast=True)
    tl.store(out + word, tl.sum(signs << bit, 1), mask=inside)


@triton.jit
def code_signs(code, k, positions, packed, words, first_index, key0, key1, F: tl.constexpr, KIND: tl.constexpr):
    """float32 ±1: coordinates k of codes >= 0, both int32 of one shape."""
    if KIND == PACKED:
        word = tl.load(packed + code.to(tl.int64) * words + (k >> 5)).to(tl.uint32, bitcast=True)
        bit = (word >> (k & 31).to(tl.uint32)) & 1
    elif KIND == RADEMACHER:
        bit = _sign_bit(_philox_index(first_index, code, F), k, key0, key1, _STREAM_RADEMACHER)
    else:
        bit = _sign_bit(_philox_index(first_index, code, F), k, key0, key1, _STREAM_HADAMARD_SIGNS)
        bit ^= _parity(tl.load(positions + k) & (code % F))
    return 1.0 - 2.0 * bit.to(tl.float32)


@triton.jit(do_not_specialize=["first_index", "key0", "key1", "first", "count", "words"])
def dense_codes(out, positions, packed, words, first_index: tl.int64, key0, key1, first, count, f, F: tl.constexpr,
                KIND: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Codes as float32 (count, f), one program per code: what the tests hold against `Dictionary.to_dense`."""
    code = tl.program_id(0)
    k = tl.arange(0, BLOCK)
    signs = code_signs(k * 0 + code + first, tl.minimum(k, f - 1), positions, packed, words, first_index, key0, key1, F,
                       KIND)  # fmt: skip
    tl.store(out + code.to(tl.int64) * f + k, signs, mask=k < f)
