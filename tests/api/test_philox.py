"""Tests of philox.py and csrc/philox.h: published known answers, an independent implementation, the bit layout."""

import random

import numpy as np
import pytest
import torch

from cplearn_kernels import philox

_core = pytest.importorskip("cplearn_kernels._core")

MASK = 0xFFFFFFFF

# Random123, kat_vectors, "philox4x32 10": (counter, key, result).
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((MASK,) * 4, (MASK,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]

IMPLEMENTATIONS = {
    "python": philox.philox4x32,
    "numpy": lambda c, k: [int(w[0]) for w in philox.philox4x32([np.array([x], dtype=np.int64) for x in c], k)],
    "torch": lambda c, k: [int(w) for w in philox.philox4x32([torch.tensor(x, dtype=torch.int64) for x in c], k)],
    "c++": _core.philox,
}


def plain_philox(counter, key, rounds=10):
    """Philox4x32 on unsigned Python integers, written from the paper: two 32x32 products, a swap, two Weyl steps."""
    x, k = list(counter), list(key)
    for _ in range(rounds):
        high0, low0 = divmod(0xD2511F53 * x[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * x[2], 2**32)
        x = [high1 ^ x[1] ^ k[0], low1, high0 ^ x[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return tuple(x)


def plain_bit(seed, stream, index, k):
    """The sign bit of coordinate k of vector `index`, straight from the layout's description."""
    words = plain_philox((index % 2**32, index // 2**32, k // 128, stream), (seed % 2**32, seed // 2**32))
    return sum(word << (32 * w) for w, word in enumerate(words)) >> (k % 128) & 1


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("counter, key, expected", KNOWN_ANSWERS)
def test_known_answers(name, counter, key, expected):
    assert tuple(IMPLEMENTATIONS[name](counter, key)) == expected


@pytest.mark.parametrize("rounds", [9, 11])
def test_known_answers_notice_a_wrong_number_of_rounds(rounds):
    counter, key, expected = KNOWN_ANSWERS[2]
    assert philox.philox4x32(counter, key, rounds=rounds) != expected


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_random_counters_against_plain_python(name):
    """Words with the top bit set are the ones that a signed product could get wrong; half of all random words are."""
    draw = random.Random(0)
    for _ in range(50):
        counter, key = [draw.getrandbits(32) for _ in range(4)], [draw.getrandbits(32) for _ in range(2)]
        assert tuple(IMPLEMENTATIONS[name](counter, key)) == plain_philox(counter, key)


def test_words_broadcast():
    first, second = torch.arange(3)[:, None], torch.arange(4)[None, :]
    words = philox.philox4x32((first, second, 5, 6), (7, 8))
    assert [tuple(w.shape) for w in words] == [(3, 4)] * 4
    assert tuple(int(w[2, 3]) for w in words) == plain_philox((2, 3, 5, 6), (7, 8))


@pytest.mark.parametrize("stream", [philox.STREAM_RADEMACHER, philox.STREAM_HADAMARD_SIGNS])
@pytest.mark.parametrize("seed", [0, 0x0123456789ABCDEF, 2**63 + 5, 2**64 - 1])
@pytest.mark.parametrize("start", [0, 2**32 - 1, 2**33 + 1])
def test_bit_layout(stream, seed, start):
    """Three vectors of 300 coordinates: three groups of 128, and a start that crosses from the low to the high word."""
    bits = philox.sign_bits(seed, stream, start, start + 3, 300)
    assert bits.shape == (3, 300)
    checked = (0, 1, 31, 32, 63, 127, 128, 129, 255, 256, 299)
    expected = [[plain_bit(seed, stream, start + i, k) for k in checked] for i in range(3)]
    assert bits[:, checked].tolist() == expected


def test_bit_layout_notices_words_in_big_endian_order():
    bits = philox.sign_bits(3, 0, 0, 1, 128)[0]
    swapped = bits.view(4, 32).flip(0).flatten()
    assert swapped.tolist() != [plain_bit(3, 0, 0, k) for k in range(128)]


@pytest.mark.parametrize("f, places", [(3, 4), (7, 8), (100, 128), (129, 256)])
@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_injection_orders_places_by_their_unsigned_keys(f, places, seed):
    def key(place):
        low, high, _, _ = plain_philox((place, 0, 0, philox.STREAM_HADAMARD_INJECTION), (seed % 2**32, seed // 2**32))
        return high << 32 | low

    expected = sorted(range(places), key=key)[:f]
    assert philox.injection(seed, f, places).tolist() == expected
    assert f == 3 or expected != sorted(expected)  # the identity would be a wrong answer


@pytest.mark.parametrize("f", [1, 2, 128])
def test_injection_of_a_full_block_is_the_identity(f):
    assert philox.injection(9, f, f).tolist() == list(range(f))
