"""The float64 oracle's answers, shared by many backends and settings, and the measure of how far an answer is off."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import math
import pathlib

import torch
from cases import make_dictionary

import cplearn_kernels
from cplearn_kernels import DenseDictionary, RademacherDictionary, cplearn_loss, default_temperature, reference
from cplearn_kernels import dictionary as dictionary_module

# What docs/support.md promises: |dL| <= 1e-6 max(|L|, 1); |dg| <= 1e-5 max(|g|, floor). Where logits exceed 60 in size
# the float32 rounding of a logit alone (3e-5 at 300) moves a probability by more than 1e-5.
LOSS_TOLERANCE = 1e-6
GRADIENT_TOLERANCE = 1e-5
LARGE_LOGIT_GRADIENT_TOLERANCE = 5e-5
# Backends "cpu", "triton" and "cuda" with so few features: nothing averages the rounding of a logit, and equal codes
# share a row's mass. Calls that name no backend go elsewhere (`reservation`); named, they are held to this.
FEW_FEATURES = 16
FEW_FEATURES_TOLERANCES = (5e-6, 5e-5)
LARGE_LOGIT = 60.0
# A folder in which answers are kept for other processes, if it is set.
ANSWERS: pathlib.Path | None = None

REGIMES = ("l2", "tanh", "l2 to ±300")
# (prior, whether prior_probs are given, beta)
SETTINGS = tuple(itertools.product(("reverse_kl", "cross_entropy"), (False, True), (0.0, 0.5, 1.0, 3.0)))


@dataclasses.dataclass
class Case:
    """Two views and the temperature at which they are used."""

    views: tuple[torch.Tensor, torch.Tensor]
    temperature: float


@functools.lru_cache(maxsize=2)
def float64_codes(dictionary) -> torch.Tensor:
    """W as float64: making it takes longer than most uses, and the cases of one dictionary come one after the other."""
    return dictionary.to_dense(dtype=torch.float64)


def make_case(dictionary, n: int, regime: str, dtype=torch.float32, seed: int = 0) -> Case:
    """Views whose rows go from unaligned to almost aligned with a code, so that every part of a loss matters.

    Row i leans on a code with strength 0, 0.3, 1 or 20 against noise of the same norm; both views share the code.
    """
    f, c = dictionary.num_features, dictionary.num_codes
    generator = torch.Generator().manual_seed(seed * 1_000_003 + f * 1009 + c * 31 + n)
    code = torch.randint(0, c, (n,), generator=generator)
    base = float64_codes(dictionary)[:, code].T.float() / math.sqrt(f)
    strength = torch.tensor([0.0, 0.3, 1.0, 20.0])[torch.arange(n) % 4][:, None]
    views = []
    for _ in range(2):
        noise = torch.nn.functional.normalize(torch.randn(n, f, generator=generator), dim=1)
        if regime == "tanh":
            views.append(torch.tanh(math.sqrt(f) * (strength * base + noise)))
        else:
            views.append(torch.nn.functional.normalize(strength * base + noise, dim=1))
    if regime == "tanh":
        temperature = default_temperature(f, c, embedding="tanh", batch_size=n)
    else:
        temperature = default_temperature(f, c) if regime == "l2" else math.sqrt(f) / 300
    return Case(tuple(view.to(dtype) for view in views), temperature)


def signs_dictionary(kind, f, c, device, seed=2):
    """A dictionary of ±1 codes by name; "dense" has entries that no generator made."""
    if kind != "dense":
        return make_dictionary(kind, f, c, seed)
    return DenseDictionary(RademacherDictionary(f, c, seed=seed + 9).to_dense(device=device))


def prior_probs(num_codes: int, with_zeros: bool) -> torch.Tensor:
    """A non-uniform float32 prior that sums to 1 up to rounding; every third entry 0 if asked for (and if c > 3)."""
    q = torch.rand(num_codes, generator=torch.Generator().manual_seed(num_codes)) + 0.1
    if with_zeros and num_codes > 3:
        q[::3] = 0
    return q / q.sum()


def kept(make, *inputs):
    """`make()`, or what it gave an earlier process for the same inputs: tensors, bytes, and what prints the same."""
    if ANSWERS is None:
        return make()
    parts = [x.double().numpy().tobytes() if isinstance(x, torch.Tensor) else repr(x).encode() for x in inputs]
    path = ANSWERS / f"{hashlib.sha256(b' '.join(parts)).hexdigest()}.pt"
    if not path.exists():
        torch.save(make(), path)
    return torch.load(path)


class LossOracle:
    """Loss and gradient of `reference.cplearn_loss` in float64 for any prior and beta, on the given inputs.

    The loss is linear in its terms, so five gradients (four priors, the invariance) give all combinations.
    """

    def __init__(self, dictionary, case: Case):
        self._dictionary, self._case = dictionary, case
        self._inputs = ("loss", dictionary.identity(), *case.views, case.temperature)
        self.terms, self.large_logits = kept(self._values, *self._inputs)
        self._gradients = {}
        self.few_features = dictionary.num_features <= FEW_FEATURES
        self.floor = 1e-2 * math.sqrt(dictionary.num_features / case.views[0].shape[0]) / (2 * case.temperature)

    def loss(self, prior: str, given: bool, beta: float) -> tuple[float, torch.Tensor]:
        """(L, dL/dh of both views stacked)."""
        value = self.terms[prior, given] + beta * self.terms["invariance"]
        return value.item(), self._gradient((prior, given)) + beta * self._gradient("invariance")

    @functools.cached_property
    def _graph(self):
        """(logits of both views, the terms as functions of them)."""
        n, c = self._case.views[0].shape[0], self._dictionary.num_codes
        weight = float64_codes(self._dictionary)
        scaled = torch.cat([view.double() / self._case.temperature for view in self._case.views])
        logits = (scaled @ weight).requires_grad_()
        log_p = torch.log_softmax(logits, dim=1)
        log_mean = [torch.logsumexp(part, dim=0) - math.log(n) for part in log_p.split(n)]
        terms = {}
        for prior in ("reverse_kl", "cross_entropy"):
            for given in (False, True):
                q = prior_probs(c, with_zeros=prior == "cross_entropy") if given else None
                terms[prior, given] = sum(reference.prior_term(lm, prior, q) for lm in log_mean) / 2
        first, second = log_p.split(n)
        terms["invariance"] = -((first.exp() * second).sum() + (second.exp() * first).sum()) / (2 * n)
        return logits, terms

    def _values(self):
        logits, terms = self._graph
        return {name: term.detach() for name, term in terms.items()}, bool(logits.detach().abs().max() > LARGE_LOGIT)

    def _gradient(self, name) -> torch.Tensor:
        def make():
            logits, terms = self._graph
            (wrt_logits,) = torch.autograd.grad(terms[name], logits, retain_graph=True)
            return wrt_logits @ float64_codes(self._dictionary).T / self._case.temperature

        if name not in self._gradients:
            self._gradients[name] = kept(make, name, *self._inputs)
        return self._gradients[name]

    def tolerances(self, backend: str) -> tuple[float, float]:
        """(loss tolerance, gradient tolerance) for an answer of `backend`."""
        loss, gradient = LOSS_TOLERANCE, GRADIENT_TOLERANCE
        if self.large_logits:
            gradient = LARGE_LOGIT_GRADIENT_TOLERANCE
        if self.few_features and backend.startswith(("cpu", "triton", "cuda")):
            loss, gradient = FEW_FEATURES_TOLERANCES
        return loss, gradient

    def errors(self, prior: str, given: bool, beta: float, loss, gradients, dtype=None) -> tuple[float, float]:
        """(loss error, gradient error) in the units of the tolerances, for gradients that were rounded to `dtype`."""
        value, gradient = self.loss(prior, given, beta)
        loss_error = abs(float(loss) - value) / max(abs(value), 1)
        # `run_loss` scales float16 gradients so that the largest is at least 512.
        smallest = torch.finfo(torch.float16).tiny * gradient.abs().max().item() / 512
        difference = beyond_rounding(torch.cat(list(gradients)), gradient, dtype, smallest)
        return loss_error, float(difference.norm() / max(gradient.norm().item(), self.floor))


def relative_error(result: torch.Tensor, expected: torch.Tensor, floor: float) -> float:
    """Norm of the difference over the larger of the expected norm and a floor."""
    return float((result.double() - expected).norm() / max(expected.norm().item(), floor))


def beyond_rounding(result, exact, dtype, smallest=None) -> torch.Tensor:
    """`|result - exact|`, for half precision less what rounding the exact number itself would do: half a unit.

    If `result` is x rounded, then |result - exact| <= |x - exact| + half a unit at `exact`; where x lies beyond a power
    of two, which is a number of the format, <= 2 |x - exact|. What is left is thus the error before the rounding, and
    is held to the tolerance of float32. (The rounding alone makes up to 2^-8 of a bfloat16, 2^-11 of a float16.)

    Args:
        smallest: the size below which units do not shrink, if other than the format's smallest normal number.
    """
    difference = (result.double() - exact).abs()
    if dtype not in (torch.bfloat16, torch.float16):
        return difference
    info = torch.finfo(dtype)
    _, exponent = torch.frexp(exact.abs().clamp_min(smallest if dtype == torch.float16 and smallest else info.tiny))
    return (difference - torch.ldexp(torch.full_like(difference, info.eps / 4), exponent)).clamp_min(0)


def run_loss(dictionary, case, setting, backend, device="cpu"):
    """(loss, gradients) of the library for one setting, on the CPU again."""
    prior, given, beta = setting
    views = [view.to(device, copy=True).requires_grad_() for view in case.views]
    q = prior_probs(dictionary.num_codes, with_zeros=prior == "cross_entropy").to(device) if given else None
    loss = cplearn_loss(
        *views, dictionary, temperature=case.temperature, beta=beta, prior=prior, prior_probs=q, backend=backend
    )
    gradients = torch.autograd.grad(loss, views, retain_graph=True)
    if views[0].dtype != torch.float16:
        return loss.detach().cpu(), tuple(g.cpu() for g in gradients)
    # As a gradient scaler does: a power of two that lifts the largest entry to about 1000, so that none underflows.
    largest = max(max(g.abs().max().item() for g in gradients), 2.0**-24)
    scale = 2.0 ** math.floor(math.log2(1024 / largest))
    scaled = torch.autograd.grad(loss, views, torch.tensor(scale, device=device))
    assert all(g.dtype == torch.float16 for g in scaled)
    return loss.detach().cpu(), tuple(g.cpu().double() / scale for g in scaled)


def check_loss(conformance, label, oracle, setting, loss, gradients, dtype=None, share=1.0):
    """Record the errors of one answer and hold them against the tolerances, or a share of them."""
    dtype = dtype or gradients[0].dtype
    errors, tolerances = oracle.errors(*setting, loss, gradients, dtype), oracle.tolerances(label)
    regime = ("f <= 16, " if oracle.few_features else "") + ("logits > 60" if oracle.large_logits else "logits <= 60")
    conformance.record(label, "cplearn_loss", dtype, regime, *errors, tolerances)
    for error, tolerance in zip(errors, tolerances, strict=True):
        assert math.isfinite(error) and error <= share * tolerance, (label, setting, dtype, regime)


class RowOracle:
    """Value and gradient of a function of one batch in float64."""

    def __init__(self, function: str, dictionary, n: int, regime: str, dtype=torch.float32):
        self.function, self.dtype = function, dtype
        self.case = case = make_case(dictionary, n, regime, dtype)
        # Where the function takes a mean, gradients are scaled up, as a gradient scaler would: else float16 underflows.
        rows = n if function == "mean_assignment" else 1
        f, self.few_features = dictionary.num_features, dictionary.num_features <= FEW_FEATURES

        def answer():
            exact = case.views[0].double().requires_grad_()
            # The same codes as a matrix: the reference functions would make them anew several times.
            codes = dictionary_module.rebuild("dense", f, dictionary.num_codes, 0, float64_codes(dictionary), None)
            value = getattr(reference, function)(exact, codes, temperature=case.temperature)
            upstream = torch.randn(value.shape, generator=torch.Generator().manual_seed(5)) * rows
            (gradient,) = torch.autograd.grad(value, exact, upstream.double())
            large = reference.logits(exact, codes, temperature=case.temperature).abs().max() > LARGE_LOGIT
            return value.detach(), upstream, gradient, bool(large)

        inputs = (function, dictionary.identity(), case.views[0], case.temperature, rows)
        self.value, self.upstream, self.gradient, self.large_logits = kept(answer, *inputs)
        # What the upstream gradient would give if a whole row moved by one code: the scale of a real gradient.
        self.floor = 1e-2 * self.upstream.norm().item() * math.sqrt(f) / case.temperature / rows

    def check(self, conformance, backend, dictionary, device="cpu", label=None, share=1.0):
        """Run it, record the errors and hold them against the tolerances of the loss's gradient, or a share of them."""
        h = self.case.views[0].to(device, copy=True).requires_grad_()
        run = getattr(cplearn_kernels, self.function)
        result = run(h, dictionary, temperature=self.case.temperature, backend=backend)
        (gradient,) = torch.autograd.grad(result, h, self.upstream.to(device))
        difference = beyond_rounding(gradient.cpu(), self.gradient, self.dtype)
        errors = (
            relative_error(result.detach().cpu(), self.value, 0.0),
            float(difference.norm() / max(self.gradient.norm().item(), self.floor)),
        )
        tolerance = LARGE_LOGIT_GRADIENT_TOLERANCE if self.large_logits else GRADIENT_TOLERANCE
        few = self.few_features and backend != "torch"
        tolerances = (tolerance, max(tolerance, FEW_FEATURES_TOLERANCES[1] if few else 0))
        regime = ("f <= 16, " if self.few_features else "") + ("logits > 60" if self.large_logits else "logits <= 60")
        conformance.record(label or backend, self.function, self.dtype, regime, *errors, tolerances)
        for error, bound in zip(errors, tolerances, strict=True):
            assert error <= share * bound, (backend, self.case.temperature, dictionary)


def check_row_function(conformance, backend, function, dictionary, n, regime, dtype=torch.float32, device="cpu"):
    """A function of one batch and its gradient on a GPU backend, against the oracle."""
    RowOracle(function, dictionary.to("cpu"), n, regime, dtype).check(conformance, backend, dictionary, device)
