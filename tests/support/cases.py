"""Inputs that several test modules share: embeddings, priors, dictionaries, and a loss with its gradients."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

import cplearn_kernels as cpk

FUSED = ("cpu", "torch")
PRIORS = ("reverse_kl", "cross_entropy")
DICTIONARY_KINDS = ("hadamard", "rademacher", "dense")


def embeddings(n, f, seed=0, dtype=torch.float32, kind="l2", dictionary=None):
    """Two views `(n, f)` of one batch, related as augmentations are: a common part and some noise each.

    Args:
        kind: "l2": unit rows; "tanh": entries in (-1, 1); "aligned": row i of both views is one random code of
            `dictionary`, scaled to unit length.
    """
    generator = torch.Generator().manual_seed(1_000_003 * seed + 1009 * n + f)
    if kind == "aligned":
        picked = torch.randint(dictionary.num_codes, (n,), generator=generator).tolist()
        codes = [dictionary.to_dense(j, j + 1, dtype=torch.float64)[:, 0] for j in picked]
        view = torch.nn.functional.normalize(torch.stack(codes), dim=1).to(dtype)
        return view, view.clone()
    common = torch.randn(n, f, generator=generator, dtype=torch.float64)
    noise = torch.randn(2, n, f, generator=generator, dtype=torch.float64)
    raw = common + 0.5 * noise
    views = {"l2": lambda: torch.nn.functional.normalize(raw, dim=2), "tanh": lambda: torch.tanh(raw)}[kind]()
    return views[0].to(dtype), views[1].to(dtype)


def prior_probs(c, seed=0, zeros=False, dtype=torch.float32):
    """A distribution over c codes, far from uniform; with `zeros`, every third code (never the only one) gets 0."""
    generator = torch.Generator().manual_seed(7919 * seed + c)
    weights = torch.randn(c, generator=generator, dtype=torch.float64).exp()
    if zeros:
        weights[1::3] = 0
    return (weights / weights.sum()).to(dtype)


def make_dictionary(kind, f, c, seed=0):
    """A dictionary by name; "dense" is a seeded normal matrix."""
    if kind == "dense":
        return cpk.DenseDictionary(torch.randn(f, c, generator=torch.Generator().manual_seed(seed)))
    cls = {"hadamard": cpk.HadamardDictionary, "rademacher": cpk.RademacherDictionary}[kind]
    return cls(f, c, seed=seed)


def loss_and_gradients(h1, h2, dictionary, *, temperature=0.3, upstream=1.0, loss=None, **options):
    """(loss, dL/dh1, dL/dh2), detached; `loss` is `cpk.cplearn_loss` unless another is given."""
    h1, h2 = (h.detach().requires_grad_() for h in (h1, h2))
    value = (loss or cpk.cplearn_loss)(h1, h2, dictionary, temperature=temperature, **options)
    return value.detach(), *torch.autograd.grad(value * upstream, (h1, h2))


def same_bits(first, second):
    """Whether two tensors agree in dtype, shape and every bit of every entry (NaN equals NaN)."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return bool(((first == second) | (first.isnan() & second.isnan())).all())


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """For modules that import it: tiny tensors gain nothing from threads, which wait for each other on a busy one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def slow_but(cases, *quick):
    """Cases, all slow but those that are named."""
    return [case if case in quick else pytest.param(*case, marks=pytest.mark.slow) for case in cases]


class Checks:
    """Tests that several backends share: a subclass says which backend, and what each test runs with.

    Attributes:
        CASES: by the name of a test, what it is parametrised with: values by names.
    """

    CASES: ClassVar[dict] = {}

    def pytest_generate_tests(self, metafunc):
        for names, values in self.CASES.get(metafunc.function.__name__, {}).items():
            metafunc.parametrize(names, values, ids=str if "," not in names else None)
