"""Tests of temperature.py: the two formulas by hand, the default eps, what the temperature promises, bad arguments."""

import math

import pytest
import torch
from refusals import refused

import cplearn_kernels as cpk

# (f, c, options, temperature), worked out by hand from L = ln((1 - eps (c - 1)) / eps).
BY_HAND = [
    # eps = 0.1, c = 2: L = ln(0.9 / 0.1) = ln 9 = 2.1972246; sqrt(4) / L, then 4 / (sqrt(9) L).
    (4, 2, {"eps": 0.1}, 2 / 2.1972245773362196),
    (4, 2, {"eps": 0.1, "batch_size": 9}, 2 / 2.1972245773362196),
    (4, 2, {"eps": 0.1, "embedding": "tanh", "batch_size": 9}, 4 / (3 * 2.1972245773362196)),
    # eps = 0.01, c = 51: L = ln(0.5 / 0.01) = ln 50 = 3.912023.
    (2048, 51, {"eps": 0.01}, 45.254833995939045 / 3.912023005428146),
    # One code: nothing to lead, so L = ln(1 / eps); the default eps is 1e-8 and L = 8 ln 10.
    (1, 1, {}, 1 / 18.420680743952367),
    # Default eps 1e-8 while 100 c <= 1e8: the document's example.
    (128, 16384, {}, 0.6142),
    # Default eps 1 / (100 c) beyond: c = 1e9 gives L = ln(1e11 - 1e9 + 1) = ln 99000000001.
    (2048, 10**9, {}, 45.254833995939045 / 25.31838568709),
]


@pytest.mark.parametrize("f, c, options, expected", BY_HAND)
def test_values_by_hand(f, c, options, expected):
    """The constants carry at least 4 digits in the rounded example and 10 in the rest."""
    tolerance = 1e-4 if expected == 0.6142 else 1e-9
    assert cpk.default_temperature(f, c, **options) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("c", [1, 2, 16384, 10**6, 10**6 + 1, 2**40, 2**62])
def test_default_eps(c):
    """1e-8 up to a million codes, 1 / (100 c) above; always with eps c < 1, so that the lead is positive."""
    same = cpk.default_temperature(64, c, eps=1e-8 if c <= 10**6 else 1 / (100 * c))
    assert cpk.default_temperature(64, c) == same > 0
    assert cpk.default_temperature(64, c, eps=0.001 / c) != same


@pytest.mark.parametrize("eps", [1e-8, 1e-3, 0.05])
def test_an_aligned_embedding_keeps_the_promised_mass(eps):
    """f = c = 16, codes exactly orthogonal: a unit code's own logit is L, the others 0; its mass is 1 - eps (c - 1).

    In float64 the softmax is exact to a few units of 1e-16; relative to eps = 1e-8 that is 1e-8.
    """
    dictionary = cpk.HadamardDictionary(16, 16, seed=1)
    codes = dictionary.to_dense(dtype=torch.float64).T
    temperature = cpk.default_temperature(16, 16, eps=eps)
    p = cpk.projector_softmax(codes / 4, dictionary, temperature=temperature)
    promised = torch.full((16, 16), eps, dtype=torch.float64).fill_diagonal_(1 - 15 * eps)
    torch.testing.assert_close(p, promised, rtol=1e-7, atol=0)
    wrong = cpk.projector_softmax(-codes / 4, dictionary, temperature=temperature)
    assert (wrong.diagonal() < eps).all()


def test_tanh_logits_reach_root_n_times_the_lead():
    """A saturated tanh embedding is a code itself: its own logit is f / temperature = sqrt(n) L."""
    dictionary = cpk.HadamardDictionary(16, 16, seed=1)
    codes = dictionary.to_dense(dtype=torch.float64).T
    eps, n = 1e-3, 9
    lead = math.log((1 - 15 * eps) / eps)
    temperature = cpk.default_temperature(16, 16, embedding="tanh", batch_size=n, eps=eps)
    logits = cpk.reference.logits(codes, dictionary, temperature=temperature)
    expected = 3 * lead * torch.eye(16, dtype=torch.float64)
    torch.testing.assert_close(logits, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("arguments, options, given, expected", [
    ((4, 10), {"eps": 0.1}, "eps=0.1 with num_codes=10", "eps * num_codes < 1"),
    ((4, 10), {"eps": 0.5}, "eps=0.5 with num_codes=10", "eps * num_codes < 1"),
    ((4, 1), {"eps": 1.0}, "eps=1.0 with num_codes=1", "eps * num_codes < 1"),
    ((4, 10), {"eps": 0.0}, "eps=0.0", "0 < eps"),
    ((4, 10), {"eps": -1e-3}, "eps=-0.001", "0 < eps"),
    ((4, 10), {"eps": math.nan}, "eps=nan", "0 < eps"),
    ((0, 10), {}, "got 0", "num_features: expected at least 1"),
    ((4, 0), {}, "got 0", "num_codes: expected at least 1"),
    ((4, 10), {"embedding": "cosine"}, "'cosine'", "('l2', 'tanh')"),
    ((4, 10), {"embedding": "tanh"}, "got None", "batch size"),
    ((4, 10), {"embedding": "tanh", "batch_size": 0}, "got 0", "batch size (at least 1)"),
])  # fmt: skip
def test_bad_arguments(arguments, options, given, expected):
    refused(lambda: cpk.default_temperature(*arguments, **options), ValueError, given, expected)
