"""Tests of ops.py as part of autograd: strides, no_grad, one-sided gradients, second derivatives, what is kept."""

import functools

import pytest
import torch
from cases import FUSED, embeddings, loss_and_gradients, make_dictionary, one_thread, same_bits  # noqa: F401
from refusals import refused

import cplearn_kernels as cpk

DICTIONARY = make_dictionary("hadamard", 7, 20)
FUNCTIONS = ("projector_softmax", "projector_logsumexp", "expected_code", "mean_assignment")


def call(name, h, backend, other=None):
    """A function by name; a backend that has no such function is left to the library's choice."""
    views = (h, h if other is None else other) if name == "cplearn_loss" else (h,)
    served = backend if name in cpk.backends()[backend].functions else None
    return getattr(cpk, name)(*views, DICTIONARY, temperature=0.5, backend=served)


def transposed(h):
    return h.T.contiguous().T


def strided(h):
    storage = torch.full((2 * h.shape[0], 3 * h.shape[1]), torch.nan, dtype=h.dtype)
    storage[::2, 1::3] = h
    return storage[::2, 1::3]


def expanded(h):
    return h[:1].expand(h.shape)


@pytest.mark.parametrize("layout", [transposed, strided, expanded])
@pytest.mark.parametrize("backend", FUSED)
def test_strides_do_not_matter(layout, backend):
    views = [layout(h) for h in embeddings(5, 7)]
    assert not any(view.is_contiguous() for view in views)
    plain = [view.contiguous() for view in views]
    results = [loss_and_gradients(*pair, DICTIONARY, backend=backend) for pair in (views, plain)]
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))
    assert float(results[0][0]) != float(loss_and_gradients(plain[0] + 0.1, plain[1], DICTIONARY)[0])
    for name in FUNCTIONS:
        outputs = [getattr(cpk, name)(pair[0], DICTIONARY, temperature=0.5) for pair in (views, plain)]
        assert same_bits(*outputs), name
    found = [cpk.assign(pair[0], DICTIONARY, top_k=3) for pair in (views, plain)]
    assert all(same_bits(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_upstream_gradient_may_be_expanded(backend, name):
    """`.sum()` hands back one number expanded to the whole shape."""
    h = embeddings(5, 7)[0].requires_grad_()
    output = call(name, h, backend)
    first = torch.autograd.grad(output.sum(), h, retain_graph=True)[0]
    assert same_bits(first, torch.autograd.grad(output, h, torch.ones_like(output))[0])


@pytest.mark.parametrize("backend", ["reference", *FUSED])
def test_no_graph_without_need(backend):
    h1, h2 = (h.requires_grad_() for h in embeddings(5, 7))
    with_graph = call("cplearn_loss", h1, backend, h2)
    assert with_graph.requires_grad
    values = [call("cplearn_loss", h1.detach(), backend, h2.detach())]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            values.append(call("cplearn_loss", h1, backend, h2))
    for value in values:
        assert not value.requires_grad and value.grad_fn is None
        assert same_bits(value, with_graph.detach())


@pytest.mark.parametrize("backend", FUSED)
def test_a_gradient_for_one_view_alone(backend):
    both = loss_and_gradients(*embeddings(5, 7), DICTIONARY, backend=backend)[1:]
    assert not same_bits(*both)
    for wanted in (0, 1):
        views = list(embeddings(5, 7))
        views[wanted].requires_grad_()
        cpk.cplearn_loss(*views, DICTIONARY, temperature=0.3, backend=backend).backward()
        assert same_bits(views[wanted].grad, both[wanted]) and views[1 - wanted].grad is None


@pytest.mark.parametrize("backend", FUSED)
def test_one_tensor_as_both_views(backend):
    h = embeddings(5, 7)[0]
    first, second = loss_and_gradients(h, h.clone(), DICTIONARY, backend=backend)[1:]
    h.requires_grad_()
    cpk.cplearn_loss(h, h, DICTIONARY, temperature=0.3, backend=backend).backward()
    assert same_bits(h.grad, first + second)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("name", ["cplearn_loss", *FUNCTIONS])
def test_second_derivatives_are_refused(backend, name):
    h = embeddings(5, 7)[0].requires_grad_()
    for served in (backend, "reference"):
        (grad,) = torch.autograd.grad(call(name, h, served).square().sum(), h, create_graph=True)
        second = functools.partial(torch.autograd.grad, grad.square().sum(), h)
        if served != "reference":
            refused(second, NotImplementedError, "second derivatives are not implemented", 'backend="reference"')
    (found,) = second()
    assert bool(found.isfinite().all()) and bool(found.any())


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("name", ["cplearn_loss", *FUNCTIONS])
def test_backward_twice(backend, name):
    h = embeddings(5, 7)[0].requires_grad_()
    value = call(name, h, backend, h.detach().flip(0)).square().sum()
    first, second = (torch.autograd.grad(value, h, retain_graph=keep)[0] for keep in (True, False))
    assert same_bits(first, second) and bool(first.any())
    with pytest.raises(RuntimeError, match="a second time"):
        torch.autograd.grad(value, h)


def kept_elements(call):
    """How many numbers autograd keeps for the backward, counting each tensor once."""
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        call()
    return sum(tensor.numel() for tensor in kept.values())


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("name", ["cplearn_loss", "projector_logsumexp", "expected_code", "mean_assignment"])
def test_nothing_of_size_c_is_kept(backend, name):
    """Inputs and their gradients: 4 n f for the loss, n f for the others, plus at most a number for each row."""
    if name not in cpk.backends()[backend].functions:
        backend = None
    n, f = 6, 16
    limit = (4 if name == "cplearn_loss" else 1) * n * f + 2 * n
    views = [h.requires_grad_() for h in embeddings(n, f)][: 2 if name == "cplearn_loss" else 1]
    for c in (16, 5000):
        dictionary = make_dictionary("hadamard", f, c)
        options = {"dictionary": dictionary, "temperature": 0.5}
        assert kept_elements(functools.partial(getattr(cpk, name), *views, **options, backend=backend)) <= limit
        wrong = kept_elements(functools.partial(getattr(cpk.reference, name), *views, **options))
        assert wrong > limit or c == 16


@pytest.mark.parametrize("backend", ["reference", *FUSED])
def test_inputs_are_left_as_they_were(backend):
    """Also when they are float32 and contiguous, which the kernels read in place."""
    h1, h2 = embeddings(5, 7)
    before = h1.clone(), h2.clone()
    q = torch.full((20,), 1 / 20)
    kept = q.clone()
    loss_and_gradients(h1, h2, DICTIONARY, backend=backend, prior_probs=q)
    cpk.assign(h1, DICTIONARY, top_k=3, backend=backend)
    for name in FUNCTIONS:
        call(name, h1.requires_grad_(), backend).square().sum().backward()
    assert same_bits(h1.detach(), before[0]) and same_bits(h2, before[1]) and same_bits(q, kept)
