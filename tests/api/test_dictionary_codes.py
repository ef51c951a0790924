"""Tests of the codes that dictionary.py makes: frozen bits, slices, Hadamard structure, C++ agreement, statistics."""

import math

import pytest
import torch
from cases import make_dictionary, one_thread  # noqa: F401

import cplearn_kernels as cpk
from cplearn_kernels import philox

# Columns start, start + 1, … as integers whose bit k says that coordinate k is -1. Written down once, from version 1 of
# the bit layout; stored seeds and checkpoints rely on them. If this fails, BIT_LAYOUT_VERSION has to change.
FROZEN = [
    ("hadamard", 7, 0, 0, (0x65, 0x6E, 0x42, 0x49, 0x54, 0x5F, 0x73, 0x78, 0x63, 0x68, 0x44, 0x4F)),
    ("hadamard", 7, 2**63 + 5, 2**35 + 6, (0x02, 0x56, 0x6E, 0x3A)),
    ("hadamard", 129, 0, 254, (
        0x13CF2775E1AD4314E098200F8989D6450, 0x87EB896F27C99FC465EAF36B6E03CF16,
        0x9A6323A763517A4D510C4549E9535BE3, 0x1217ADD965E4CD4C73D64B6DA1FCDF0A5)),
    ("hadamard", 129, 2**64 - 1, 2**40 + 255,
        (0x1E7DDE8B69A2BCD9445F781938E7FC5A9, 0x8BC47A11D025A95E8B8A003BE4B291CF)),
    ("rademacher", 7, 0, 0, (0x55, 0x24, 0x29, 0x29, 0x54, 0x7B, 0x78, 0x31, 0x64, 0x3C, 0x6A, 0x02)),
    ("rademacher", 7, 2**63 + 5, 2**35 + 6, (0x0A, 0x33, 0x37, 0x13)),
    ("rademacher", 129, 0, 254, (
        0x5C4B6715A5D2881886D277FA0E139C76, 0x1E07BC6AF202643AE990D77999F90904D,
        0x32B3EF7312D3986436F3E26DC2972A5A, 0x16E7D574E495CF126F99F7B68ACA20783)),
    ("rademacher", 129, 2**64 - 1, 2**40 + 255,
        (0x12319BF1167F360CB0BFF9B022792D8AF, 0x1C95C0D51B81917596F144576F6433BF9)),
]  # fmt: skip


def packed(columns):
    return tuple(sum((value < 0) << k for k, value in enumerate(column)) for column in columns.T.tolist())


@pytest.mark.parametrize("kind, f, seed, start, expected", FROZEN)
def test_frozen_codes(kind, f, seed, start, expected):
    assert philox.BIT_LAYOUT_VERSION == 1
    columns = make_dictionary(kind, f, 2**41, seed).to_dense(start, start + len(expected))
    assert packed(columns) == expected
    assert packed(-columns) != expected and packed(columns.flip(0)) != expected


@pytest.mark.parametrize("kind", ["hadamard", "rademacher", "dense"])
@pytest.mark.parametrize("f", [1, 2, 7, 100, 129])
def test_slices_equal_the_whole(kind, f):
    """Odd starts and stops, inside one block, across several, up to a cut last block, and nothing at all."""
    block = 1 << (f - 1).bit_length()
    c = 5 * block + 3
    dictionary = make_dictionary(kind, f, c, seed=11)
    whole = dictionary.to_dense()
    assert whole.shape == (f, c)
    edges = sorted({0, block - 1, block, 3 * block + 1, c - 1, c})
    for start in edges:
        for stop in (edge for edge in edges if edge >= start):
            assert torch.equal(dictionary.to_dense(start, stop), whole[:, start:stop]), (start, stop)
    assert not torch.equal(dictionary.to_dense(1, c), whole[:, :-1]) or f == 1


@pytest.mark.parametrize("kind", ["hadamard", "rademacher"])
def test_seeds_change_the_codes(kind):
    seeds = (0, 1, 2**32, 2**63, 2**64 - 1)
    assert len({packed(make_dictionary(kind, 128, 10, seed).to_dense()) for seed in seeds}) == len(seeds)


def definition(dictionary, code):
    """w_{bF+r}[k] = d_b[k] (-1)^popcount(position(k) & r), one entry at a time."""
    b, r = divmod(code, dictionary.block_size)
    places = dictionary.positions().tolist()
    signs = philox.sign_bits(dictionary.seed, philox.STREAM_HADAMARD_SIGNS, b, b + 1, dictionary.num_features)[0]
    return [(-1) ** (bit + (place & r).bit_count()) for bit, place in zip(signs.tolist(), places, strict=True)]


@pytest.mark.parametrize("f", [1, 2, 7, 100, 128, 129])
@pytest.mark.parametrize("first_block", [0, 2**32 + 3])
def test_hadamard_codes_follow_the_definition(f, first_block):
    dictionary = cpk.HadamardDictionary(f, 2**48, seed=2**63 + 1)
    start = first_block * dictionary.block_size + dictionary.block_size // 3
    columns = dictionary.to_dense(start, start + dictionary.block_size + 2)[:, ::3]  # from two blocks
    expected = torch.tensor([definition(dictionary, start + 3 * i) for i in range(columns.shape[1])]).T
    assert torch.equal(columns, expected.float())
    assert not torch.equal(columns, -expected.float())


@pytest.mark.parametrize("f", [1, 2, 7, 64, 100, 128, 129])
def test_each_block_is_an_exactly_tight_frame(f):
    """Its codes are exactly orthogonal too where there are as many as coordinates."""
    block = 1 << (f - 1).bit_length()
    for w in cpk.HadamardDictionary(f, 3 * block, seed=5).to_dense(dtype=torch.float64).split(block, dim=1):
        assert torch.equal(w @ w.T, block * torch.eye(f, dtype=torch.float64))
        assert block > f or torch.equal(w.T @ w, f * torch.eye(f, dtype=torch.float64))
    independent = cpk.RademacherDictionary(f, 3 * block, seed=5).to_dense(dtype=torch.float64)
    assert f == 1 or not torch.equal(independent @ independent.T, 3 * block * torch.eye(f, dtype=torch.float64))


def largest_cosine(w):
    cosines = (w.T @ w).abs() / w.shape[0]
    return float((cosines - torch.eye(w.shape[1])).max())


@pytest.mark.parametrize("seed", range(5))
def test_codes_of_a_partial_block_are_nearly_orthogonal(seed):
    """The cosine of r and r' is a sum over 129 of 256 balanced signs: Hoeffding gives P(|cos| > 1/2) < 2 exp(-129/8).

    That is 2e-7 for each of the 255 values of r ^ r'; without the injection the largest cosine would be 127/129.
    """
    dictionary = cpk.HadamardDictionary(129, 256, seed=seed)
    assert largest_cosine(dictionary.to_dense()) < 0.5
    places = torch.arange(129)[:, None] & torch.arange(256)[None, :]
    without_injection = torch.tensor([[(-1.0) ** entry.bit_count() for entry in row] for row in places.tolist()])
    assert largest_cosine(without_injection) == pytest.approx(127 / 129)


def codes_seen_by(backend, dictionary):
    """W as a backend's kernels see it: the score of code j for the k-th unit vector is W[k, j]."""
    f, c = dictionary.num_features, dictionary.num_codes
    scores, codes = cpk.assign(torch.eye(f), dictionary, top_k=c, backend=backend)
    return torch.empty(f, c).scatter_(1, codes, scores)


@pytest.mark.parametrize("f, c", [(1, 9), (2, 9), (3, 50), (7, 300), (100, 300), (129, 700), (300, 520)])
@pytest.mark.parametrize("seed", [0, 2**63 + 12345, 2**64 - 1])
def test_compiled_codes_equal_pythons(f, c, seed):
    """Every bit of W. Blocks beyond 2^32 are out of a test's reach; the C++ generator's high words are tested alone."""
    dictionary = cpk.HadamardDictionary(f, c, seed=seed)
    seen = codes_seen_by("cpu", dictionary)
    assert torch.equal(seen, dictionary.to_dense())
    assert not torch.equal(seen, cpk.HadamardDictionary(f, c, seed=seed ^ (1 << 40)).to_dense())


def faults(w):
    """What distinguishes a matrix from one of independent fair signs; empty for all but one in a million of those.

    With N = f c entries the mean has standard deviation 1/sqrt(N). The inner product of two columns (or rows) is a sum
    of f (or c) fair signs: by Hoeffding |sum| > t has probability 2 exp(-t^2 / 2f), which the bound t holds below 1e-6
    for all pairs together. Their squares have mean f and, as pairs are pairwise independent, variance 2f(f - 1).
    """
    found = []
    if not torch.equal(w * w, torch.ones_like(w)):
        found.append("entries")
    if abs(float(w.mean())) > 6 / math.sqrt(w.numel()):
        found.append("mean")
    for name, vectors in (("columns", w.T), ("rows", w)):
        count, length = vectors.shape
        pairs = count * (count - 1) / 2
        if float(vectors.sum(1).abs().max()) > math.sqrt(2 * length * math.log(2 * count / 1e-6)):
            found.append(f"mean of {name}")
        products = torch.triu(vectors @ vectors.T, diagonal=1)
        if float(products.abs().max()) > math.sqrt(2 * length * math.log(2 * pairs / 1e-6)):
            found.append(f"pairs of {name}")
        deviation = abs(float(products.square().sum()) / pairs - length)
        if deviation > 6 * math.sqrt(2 * length * (length - 1) / pairs):
            found.append(f"variance of {name}")
    return found


RADEMACHER = make_dictionary("rademacher", 256, 1024, seed=17).to_dense(dtype=torch.float64)


@pytest.mark.parametrize("seed, start", [(0, 0), (1, 2**32 - 512), (2**64 - 1, 2**50)])
def test_rademacher_codes_are_independent_fair_signs(seed, start):
    dictionary = make_dictionary("rademacher", 256, 2**51, seed=seed)
    assert faults(dictionary.to_dense(start, start + 1024, dtype=torch.float64)) == []


@pytest.mark.parametrize("seed", [0, 2**63])
def test_hadamard_codes_of_different_blocks_are_as_good_as_independent(seed):
    """One code of each block, from different places: the same statistics as of independent codes."""
    w = make_dictionary("hadamard", 64, 512 * 64, seed=seed).to_dense(dtype=torch.float64)
    blocks = torch.arange(512)
    assert faults(w[:, 64 * blocks + blocks * 37 % 64]) == []


def biased():
    coins = torch.rand(256, 1024, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.where(coins < 0.52, 1.0, -1.0).double()


WRONG = {
    "zeros": (torch.zeros_like(RADEMACHER), "entries"),
    "a biased coin": (biased(), "mean"),
    "a repeated column": (torch.cat([RADEMACHER[:, :-1], RADEMACHER[:, :1]], dim=1), "pairs of columns"),
    "a negated column": (torch.cat([RADEMACHER[:, :-1], -RADEMACHER[:, :1]], dim=1), "pairs of columns"),
    "coordinates with period 128": (RADEMACHER[:128].repeat(2, 1), "pairs of rows"),
    "a constant column": (torch.cat([RADEMACHER[:, 1:], torch.ones(256, 1).double()], dim=1), "mean of columns"),
    "orthogonal blocks": (make_dictionary("hadamard", 256, 1024).to_dense(dtype=torch.float64), "variance of columns"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_statistics_notice(name):
    matrix, fault = WRONG[name]
    assert fault in faults(matrix)
