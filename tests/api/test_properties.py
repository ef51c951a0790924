"""Properties that hold for every input, on inputs that hypothesis makes up: backend "cpu", all its dictionaries."""

import dataclasses
import math

import pytest
import torch
from cases import same_bits
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import (
    FEW_FEATURES,
    FEW_FEATURES_TOLERANCES,
    GRADIENT_TOLERANCE,
    LARGE_LOGIT_GRADIENT_TOLERANCE,
    relative_error,
)

import cplearn_kernels as cpk
from cplearn_kernels import reference

# The same examples in every run: a failure in CI is one at home.
examples = settings(
    max_examples=400, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)


@dataclasses.dataclass
class Problem:
    """A dictionary, two views, a temperature."""

    dictionary: cpk.Dictionary
    views: tuple[torch.Tensor, torch.Tensor]
    temperature: float

    def __repr__(self):
        return (
            f"Problem({self.dictionary}, n={len(self.views[0])}, {self.views[0].dtype}, temperature={self.temperature})"
        )

    @property
    def tolerance(self):
        """Allowed relative error of gradients, as in the conformance suite."""
        bound = self.views[0].abs().sum(1).max().item() / self.temperature
        large = max(bound, self.views[1].abs().sum(1).max().item() / self.temperature) > 60
        few = FEW_FEATURES_TOLERANCES[1] if self.dictionary.num_features <= FEW_FEATURES else 0
        return max(LARGE_LOGIT_GRADIENT_TOLERANCE if large else GRADIENT_TOLERANCE, few)

    def gradient_scale(self, upstream):
        """What `upstream` gives if whole rows move by one code."""
        return upstream.double().norm().item() * math.sqrt(self.dictionary.num_features) / self.temperature


def sizes(most):
    """Small sizes, powers of two and their neighbours, anything."""
    powers = [2**k + d for k in range(most.bit_length()) for d in (-1, 0, 1) if 1 <= 2**k + d <= most]
    return st.one_of(st.integers(1, min(most, 20)), st.sampled_from(powers), st.integers(1, most))


@st.composite
def problems(draw, dtypes=(torch.float32,)):
    kind = draw(st.sampled_from(["hadamard", "rademacher", "dense ±1"]))
    f, c, n, seed = draw(sizes(700)), draw(sizes(2100)), draw(sizes(70)), draw(st.integers(0, 2**64 - 1))
    dictionary = {"hadamard": cpk.HadamardDictionary}.get(kind, cpk.RademacherDictionary)(f, c, seed=seed)
    if kind == "dense ±1":
        dictionary = cpk.DenseDictionary(dictionary.to_dense())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    common = torch.randn(n, f, generator=generator)
    apart = draw(st.sampled_from([0.0, 0.1, 1.0]))
    views = [common + apart * torch.randn(n, f, generator=generator) for _ in range(2)]
    size = draw(st.sampled_from([1.0, 1.0, 1e-3, 4.0]))
    dtype = draw(st.sampled_from(dtypes))
    views = tuple((size * torch.nn.functional.normalize(view, dim=1)).to(dtype) for view in views)
    return Problem(dictionary, views, draw(st.floats(0.05, 20)))


def loss_and_gradients(problem, views=None, **options):
    views = [view.detach().requires_grad_() for view in views or problem.views]
    loss = cpk.cplearn_loss(*views, problem.dictionary, temperature=problem.temperature, backend="cpu", **options)
    return loss.detach(), *torch.autograd.grad(loss, views)


def call(function, problem, h=None, **options):
    h = problem.views[0] if h is None else h
    return getattr(cpk, function)(h, problem.dictionary, temperature=problem.temperature, backend="cpu", **options)


ROW_FUNCTIONS = st.sampled_from(["projector_softmax", "projector_logsumexp", "expected_code", "mean_assignment"])
BETAS = st.sampled_from([0.0, 0.5, 1.0, 3.0])
PRIORS = st.sampled_from(["reverse_kl", "cross_entropy"])


@pytest.mark.slow
@examples
@given(problems((torch.float32, torch.bfloat16, torch.float16)), PRIORS, BETAS)
def test_loss_equals_the_reference(problem, prior, beta):
    n, f = problem.views[0].shape
    loss, *gradients = loss_and_gradients(problem, prior=prior, beta=beta)
    exact = [view.double().requires_grad_() for view in problem.views]
    expected = reference.cplearn_loss(
        *exact, problem.dictionary, temperature=problem.temperature, prior=prior, beta=beta
    )
    expected_gradients = torch.autograd.grad(expected, exact)
    assert abs(loss.item() - expected.item()) <= 5e-6 * max(abs(expected.item()), 1)
    if problem.views[0].dtype != torch.float32:
        return  # rounded once more: the conformance suite's business
    floor = 1e-2 * math.sqrt(f / n) / (2 * problem.temperature)
    assert relative_error(torch.cat(gradients), torch.cat(expected_gradients), floor) <= problem.tolerance


@pytest.mark.slow
@examples
@given(problems(), ROW_FUNCTIONS, st.integers(0, 2**31))
def test_row_functions_equal_the_reference(problem, function, seed):
    h, exact = problem.views[0].clone().requires_grad_(), problem.views[0].double().requires_grad_()
    value = call(function, problem, h)
    expected = getattr(reference, function)(exact, problem.dictionary, temperature=problem.temperature)
    floor = 0.1 * math.sqrt(expected.numel()) if function == "expected_code" else 1.0 if expected.dim() == 1 else 0.0
    assert relative_error(value.detach(), expected.detach(), floor) <= problem.tolerance
    upstream = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed))
    (gradient,) = torch.autograd.grad(value, h, upstream)
    (expected_gradient,) = torch.autograd.grad(expected, exact, upstream.double())
    scale = problem.gradient_scale(upstream) / (len(h) if function == "mean_assignment" else 1)
    assert relative_error(gradient, expected_gradient, 1e-2 * scale) <= problem.tolerance


@examples
@given(problems(), PRIORS, BETAS)
def test_swapping_the_views_swaps_the_gradients(problem, prior, beta):
    loss, first, second = loss_and_gradients(problem, prior=prior, beta=beta)
    swapped, a, b = loss_and_gradients(problem, problem.views[::-1], prior=prior, beta=beta)
    assert abs(loss.item() - swapped.item()) <= 1e-6 * max(abs(loss.item()), 1)
    assert same_bits(first, b) and same_bits(second, a)


@examples
@given(problems(), st.integers(0, 2**31))
def test_rows_may_come_in_any_order(problem, seed):
    """A row's results depend on its place in the batch, and on the rows beside it, by roundings alone."""
    order = torch.randperm(len(problem.views[0]), generator=torch.Generator().manual_seed(seed))
    for function in ("projector_softmax", "projector_logsumexp", "expected_code"):
        whole = call(function, problem)
        moved = call(function, problem, problem.views[0][order])
        assert float((moved - whole[order]).abs().max()) <= 2e-6 * max(float(whole.abs().max()), 1), function
    mean, shuffled = call("mean_assignment", problem), call("mean_assignment", problem, problem.views[0][order])
    assert float((mean - shuffled).abs().max()) <= 1e-6
    loss, first, _ = loss_and_gradients(problem)
    permuted, moved, _ = loss_and_gradients(problem, [view[order] for view in problem.views])
    assert abs(loss.item() - permuted.item()) <= 2e-6 * max(abs(loss.item()), 1)
    floor = 1e-2 * math.sqrt(problem.dictionary.num_features / len(order)) / (2 * problem.temperature)
    assert relative_error(moved, first[order].double(), floor) <= 2 * problem.tolerance


@examples
@given(problems())
def test_probabilities(problem):
    """Rows of the softmax sum to 1 and are exp(logit - logsumexp); their mean is the mean assignment."""
    p, lse = call("projector_softmax", problem).double(), call("projector_logsumexp", problem).double()
    assert bool((p >= 0).all()) and float((p.sum(1) - 1).abs().max()) <= 1e-5
    logits = reference.logits(problem.views[0].double(), problem.dictionary, temperature=problem.temperature)
    assert float((p - (logits - lse[:, None]).exp()).abs().max()) <= problem.tolerance
    assert float((call("mean_assignment", problem) - p.mean(0)).abs().max()) <= 1e-5


@examples
@given(problems())
def test_expected_code_is_the_gradient_of_logsumexp(problem):
    h = problem.views[0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(call("projector_logsumexp", problem, h).sum(), h)
    code = call("expected_code", problem)
    assert bool((code.abs() <= 1 + 1e-5).all())
    assert relative_error(gradient * problem.temperature, code.double(), 0.1 * math.sqrt(code.numel())) <= 1e-6


@examples
@given(problems((torch.float32, torch.float16)), st.integers(1, 12))
def test_assign(problem, top_k):
    h, top_k = problem.views[0], min(top_k, problem.dictionary.num_codes)
    scores, codes = cpk.assign(h, problem.dictionary, top_k=top_k, backend="cpu")
    exact = reference.logits(h.double(), problem.dictionary, temperature=1.0)
    slack = 1e-6 * (1 + h.double().abs().sum(1, keepdim=True))
    assert bool((scores[:, 1:] <= scores[:, :-1]).all())
    assert bool(((exact.gather(1, codes) - scores).abs() <= slack).all())
    assert bool(((exact.topk(top_k, dim=1).values - scores).abs() <= slack).all())
    assert all(len(set(row)) == top_k for row in codes.tolist())


@pytest.mark.slow
@examples
@given(
    problems(), st.sampled_from(["every other row", "every other column", "transposed", "expanded"]), st.integers(1, 3)
)
def test_strides_and_threads_change_no_bit(problem, layout, threads):
    def laid_out(view):
        if layout == "every other row":
            return torch.stack([view, view + 1], dim=1).flatten(0, 1)[::2]
        if layout == "every other column":
            return torch.stack([view, view + 1], dim=2).flatten(1)[:, ::2]
        return view.T.contiguous().T if layout == "transposed" else view[:1].expand_as(view)

    views = [laid_out(view) for view in problem.views]
    expected = loss_and_gradients(problem, [view.contiguous() for view in views])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = loss_and_gradients(problem, views)
    finally:
        torch.set_num_threads(before)
    assert all(same_bits(a, b) for a, b in zip(got, expected, strict=True))
