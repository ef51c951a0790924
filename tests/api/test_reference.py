"""Tests of reference.py, the specification: against double loops in plain Python, derivatives, floors, identities."""

import functools
import itertools
import math

import pytest
import torch
from cases import PRIORS, embeddings, loss_and_gradients, make_dictionary, one_thread, prior_probs  # noqa: F401

import cplearn_kernels as cpk
from bench.formulas import authors_loss
from cplearn_kernels import reference

F64 = torch.float64
# Float64 sums of at most a few hundred terms of order 10: 1e-12 leaves three digits to spare.
TIGHT = {"rel": 1e-12, "abs": 1e-12}


def written_out(h1, h2, w, temperature, beta, prior, q):
    """(loss, invariance, prior) as the formulas of the paper read, on nested lists."""
    n, c = len(h1), len(w[0])
    q = q or [1 / c] * c
    p = []
    for h in (h1, h2):
        rows = []
        for row in h:
            scores = [sum(x * w[k][j] for k, x in enumerate(row)) for j in range(c)]
            exponentials = [math.exp(score / temperature) for score in scores]
            rows.append([e / sum(exponentials) for e in exponentials])
        p.append(rows)
    loss = invariances = priors = 0.0
    for a, b in ((0, 1), (1, 0)):
        mean = [sum(p[a][i][j] for i in range(n)) / n for j in range(c)]
        if prior == "reverse_kl":
            prior_term = sum(mean[j] * math.log(mean[j] / q[j]) for j in range(c))
        else:
            prior_term = -sum(q[j] * math.log(mean[j]) for j in range(c))
        invariance = -sum(p[a][i][j] * math.log(p[b][i][j]) for i in range(n) for j in range(c)) / n
        loss += (prior_term + beta * invariance) / 2
        invariances += invariance / 2
        priors += prior_term / 2
    return loss, invariances, priors


@pytest.mark.parametrize("prior, given", [*itertools.product(PRIORS, ("uniform", "q")), (PRIORS[1], "q with zeros")])
@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("n, f, c", [(1, 1, 1), (2, 3, 5), (5, 4, 9)])
def test_loss_against_the_formula_written_out(prior, given, beta, n, f, c):
    q = None if given == "uniform" else prior_probs(c, seed=1, zeros=given != "q", dtype=F64)
    dictionary = make_dictionary("rademacher", f, c, seed=3)
    h1, h2 = embeddings(n, f, seed=2, dtype=F64)
    w, listed = dictionary.to_dense().tolist(), None if q is None else q.tolist()
    expected = written_out(h1.tolist(), h2.tolist(), w, 0.7, beta, prior, listed)
    options = {"temperature": 0.7, "prior": prior, "prior_probs": q}
    loss, terms = reference.cplearn_loss(h1, h2, dictionary, beta=beta, return_terms=True, **options)
    assert (float(loss), float(terms["invariance"]), float(terms["prior"])) == pytest.approx(expected, **TIGHT)
    if c > 1:
        wrong = reference.cplearn_loss(-h1, h2, dictionary, beta=beta, **options)
        assert float(wrong) != pytest.approx(expected[0], **TIGHT)


def test_functions_of_one_batch_against_the_formula_written_out():
    dictionary = make_dictionary("rademacher", 3, 6, seed=4)
    h = embeddings(4, 3, dtype=F64)[0]
    w = dictionary.to_dense(dtype=F64).tolist()
    scores = [[sum(x * w[k][j] for k, x in enumerate(row)) for j in range(6)] for row in h.tolist()]
    totals = [sum(math.exp(s / 0.7) for s in row) for row in scores]
    p = [[math.exp(s / 0.7) / total for s in row] for row, total in zip(scores, totals, strict=True)]
    code = [[sum(p[i][j] * w[k][j] for j in range(6)) for k in range(3)] for i in range(4)]
    expected = {
        "logits": [[s / 0.7 for s in row] for row in scores],
        "projector_softmax": p,
        "projector_logsumexp": [math.log(total) for total in totals],
        "expected_code": code,
        "mean_assignment": [sum(p[i][j] for i in range(4)) / 4 for j in range(6)],
    }
    for name, value in expected.items():
        got = getattr(reference, name)(h, dictionary, temperature=0.7)
        torch.testing.assert_close(got, torch.tensor(value, dtype=F64), rtol=1e-12, atol=1e-12, msg=name)
    # Equal scores come in the order of their codes; rounding makes equals of nearly equal ones, hence it here.
    best = [sorted(range(6), key=lambda j: (-round(row[j], 12), j))[:4] for row in scores]
    found_scores, found = reference.assign(h, dictionary, top_k=4)
    assert found.tolist() == best
    torch.testing.assert_close(found_scores, torch.tensor(scores, dtype=F64).gather(1, found), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("beta, given", [(1.0, False), (0.5, True)])
def test_loss_derivatives(prior, beta, given):
    """First and second derivatives against finite differences, at gradcheck's own tolerances for float64."""
    dictionary = make_dictionary("hadamard", 3, 6, seed=3)
    q = prior_probs(6, dtype=F64) if given else None
    inputs = [h.requires_grad_() for h in embeddings(2, 3, dtype=F64)]

    def loss(h1, h2):
        return reference.cplearn_loss(h1, h2, dictionary, temperature=0.7, beta=beta, prior=prior, prior_probs=q)

    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs, fast_mode=True)


@pytest.mark.parametrize("name", ["projector_softmax", "projector_logsumexp", "expected_code", "mean_assignment"])
def test_function_derivatives(name):
    dictionary = make_dictionary("hadamard", 3, 6, seed=3)
    h = embeddings(2, 3, dtype=F64)[0].requires_grad_()
    function = functools.partial(getattr(reference, name), dictionary=dictionary, temperature=0.7)
    assert torch.autograd.gradcheck(function, (h,))
    assert torch.autograd.gradgradcheck(function, (h,), fast_mode=True)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("strength", [0.8, 1.0, 50.0])
@pytest.mark.parametrize("backend", ["reference", "torch", "cpu"])
def test_finite_on_aligned_codes(prior, strength, backend):
    """tanh, n = 64: columns far from every row underflow; 0 log 0 is 0 here and NaN in the authors' formula."""
    dictionary = make_dictionary("hadamard", 128, 1024, seed=1)
    aligned, _ = embeddings(64, 128, kind="aligned", dictionary=dictionary)
    h = strength * aligned * math.sqrt(128)
    temperature = cpk.default_temperature(128, 1024, embedding="tanh", batch_size=64)
    if prior == "reverse_kl":
        theirs = authors_loss(h, h.clone(), dictionary.to_dense(), temperature, 1.0)
        assert not theirs.isfinite()
    results = loss_and_gradients(h, h.clone(), dictionary, temperature=temperature, prior=prior, backend=backend)
    assert all(bool(result.isfinite().all()) for result in results)


@pytest.mark.parametrize("n, c", [(4, 16), (16, 16), (48, 16)])
def test_floor_and_collapse(n, c):
    """beta 1, reverse_kl, rows spread evenly over min(n, c) codes: log(c / min(n, c)); all rows on one code: log c.

    At temperature 0.1 an orthogonal code is 160 below in log scale: exp(-160) vanishes against 1e-12.
    """
    dictionary = cpk.HadamardDictionary(16, c, seed=0)

    def value(rows):
        h = dictionary.to_dense(dtype=F64).T[rows]
        return float(reference.cplearn_loss(h, h, dictionary, temperature=0.1))

    assert value(torch.arange(n) % c) == pytest.approx(math.log(c / min(n, c)), **TIGHT)
    assert value(torch.zeros(n, dtype=torch.int64)) == pytest.approx(math.log(c), **TIGHT)


@pytest.mark.parametrize("kind", ["l2", "tanh"])
def test_invariance_from_log_sums_and_expected_codes(kind):
    """docs/mathematics.md, identity 1: invariance(a -> b) = mean(lse^b - h^b · B^a / temperature)."""
    dictionary = make_dictionary("hadamard", 7, 30, seed=2)
    views = embeddings(5, 7, dtype=F64, kind=kind)
    lse = [reference.projector_logsumexp(h, dictionary, temperature=0.3) for h in views]
    expected = [reference.expected_code(h, dictionary, temperature=0.3) for h in views]
    pairs = ((0, 1), (1, 0))
    decoupled = sum((lse[b] - (views[b] * expected[a]).sum(1) / 0.3).mean() for a, b in pairs) / 2
    _, terms = reference.cplearn_loss(*views, dictionary, temperature=0.3, return_terms=True)
    assert float(decoupled) == pytest.approx(float(terms["invariance"]), **TIGHT)
    swapped = sum((lse[b] - (views[b] * expected[b]).sum(1) / 0.3).mean() for a, b in pairs) / 2
    assert float(swapped) != pytest.approx(float(terms["invariance"]), **TIGHT)


def test_information_form_of_the_loss():
    """Uniform q, reverse_kl, beta 1: the mean over both orders of log c - I(sample; code) + KL(p^a || p^b)."""
    dictionary = make_dictionary("rademacher", 7, 30, seed=2)
    views = embeddings(5, 7, dtype=F64)
    p = [reference.projector_softmax(h, dictionary, temperature=0.5) for h in views]
    total = 0.0
    for a, b in ((0, 1), (1, 0)):
        mean = p[a].mean(0)
        information = (p[a] * (p[a] / mean).log()).sum(1).mean()
        divergence = (p[a] * (p[a] / p[b]).log()).sum(1).mean()
        total += float(math.log(30) - information + divergence) / 2
    assert float(reference.cplearn_loss(*views, dictionary, temperature=0.5)) == pytest.approx(total, **TIGHT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    dictionary = make_dictionary("hadamard", 7, 30)
    halves = embeddings(6, 7, dtype=dtype)
    value = reference.cplearn_loss(*halves, dictionary, temperature=0.3)
    assert value.dtype == torch.float32
    assert torch.equal(value, reference.cplearn_loss(*(h.float() for h in halves), dictionary, temperature=0.3))
