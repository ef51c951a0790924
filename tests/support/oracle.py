"""The float64 oracle's answers, shared by many backends and settings, and the measure of how far an answer is off."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import torch
from cases import make_dictionary

import cplearn_kernels
from cplearn_kernels import DenseDictionary, RademacherDictionary, cplearn_loss, default_temperature, reference

# What docs/support.md promises: |dL| <= 1e-6 max(|L|, 1); |dg| <= 1e-5 max(|g|, floor). Where logits exceed 60 in size the
# float32 rounding of a logit alone (3e-5 at 300) moves a probability by more than 1e-5.
LOSS_TOLERANCE = 1e-6
GRADIENT_TOLERANCE = 1e-5
LARGE_LOGIT_GRADIENT_TOLERANCE = 5e-5
# The backends "cpu", "triton" and "cuda" with so few features: nothing averages the rounding of a logit, and equal codes share
# a row's mass. Calls that name no backend go elsewhere (`reservation`); named, they are held to this.
FEW_FEATURES = 16
FEW_FEATURES_TOLERANCES = (5e-6, 5e-5)
# A gradient that is returned in half precision has been rounded to it once.
CAST_TOLERANCE = {torch.bfloat16: 4e-3, torch.float16: 5e-4}
LARGE_LOGIT = 60.0

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


class LossOracle:
    """Loss and gradient of `reference.cplearn_loss` in float64 for any prior and beta, on the given inputs.

    The loss is linear in its terms, so five gradients (four priors, the invariance) give all combinations.
    """

    def __init__(self, dictionary, case: Case):
        n, c = case.views[0].shape[0], dictionary.num_codes
        weight = float64_codes(dictionary)
        logits = torch.cat([(view.double() / case.temperature) @ weight for view in case.views]).requires_grad_()
        self.large_logits = bool(logits.detach().abs().max() > LARGE_LOGIT)
        log_p = torch.log_softmax(logits, dim=1)
        log_mean = [torch.logsumexp(part, dim=0) - math.log(n) for part in log_p.split(n)]
        self.terms = {}
        for prior in ("reverse_kl", "cross_entropy"):
            for given in (False, True):
                q = prior_probs(c, with_zeros=prior == "cross_entropy") if given else None
                self.terms[prior, given] = sum(reference.prior_term(lm, prior, q) for lm in log_mean) / 2
        first, second = log_p.split(n)
        self.terms["invariance"] = -((first.exp() * second).sum() + (second.exp() * first).sum()) / (2 * n)
        self._logits, self._weight, self._temperature = logits, weight, case.temperature
        self._gradients = {}
        self.few_features = dictionary.num_features <= FEW_FEATURES
        self.floor = 1e-2 * math.sqrt(dictionary.num_features / n) / (2 * case.temperature)

    def loss(self, prior: str, given: bool, beta: float) -> tuple[float, torch.Tensor]:
        """(L, dL/dh of both views stacked)."""
        value = self.terms[prior, given] + beta * self.terms["invariance"]
        return value.item(), self._gradient((prior, given)) + beta * self._gradient("invariance")

    def _gradient(self, name) -> torch.Tensor:
        if name not in self._gradients:
            (wrt_logits,) = torch.autograd.grad(self.terms[name], self._logits, retain_graph=True)
            self._gradients[name] = wrt_logits @ self._weight.T / self._temperature
        return self._gradients[name]

    def tolerances(self, backend: str, dtype: torch.dtype) -> tuple[float, float]:
        """(loss tolerance, gradient tolerance) for an answer of `backend` with gradients of `dtype`."""
        loss, gradient = LOSS_TOLERANCE, GRADIENT_TOLERANCE
        if self.large_logits:
            gradient = LARGE_LOGIT_GRADIENT_TOLERANCE
        if self.few_features and backend.startswith(("cpu", "triton", "cuda")):
            loss, gradient = FEW_FEATURES_TOLERANCES
        return loss, max(gradient, CAST_TOLERANCE.get(dtype, 0))

    def errors(self, prior: str, given: bool, beta: float, loss, gradients) -> tuple[float, float]:
        """(loss error, gradient error) in the units of the tolerances."""
        value, gradient = self.loss(prior, given, beta)
        loss_error = abs(float(loss) - value) / max(abs(value), 1)
        difference = (torch.cat(list(gradients)).double() - gradient).norm()
        return loss_error, float(difference / max(gradient.norm().item(), self.floor))


def relative_error(result: torch.Tensor, expected: torch.Tensor, floor: float) -> float:
    """Norm of the difference over the larger of the expected norm and a floor."""
    return float((result.double() - expected).norm() / max(expected.norm().item(), floor))


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


def check_loss(conformance, label, oracle, setting, loss, gradients, dtype=None):
    """Record the errors of one answer and hold them against the tolerances."""
    loss_error, gradient_error = oracle.errors(*setting, loss, gradients)
    dtype = dtype or gradients[0].dtype
    loss_tolerance, tolerance = oracle.tolerances(label, dtype)
    regime = ("f <= 16, " if oracle.few_features else "") + ("logits > 60" if oracle.large_logits else "logits <= 60")
    conformance.record(label, "cplearn_loss", dtype, regime, loss_error, gradient_error, tolerance)
    assert math.isfinite(loss_error) and loss_error <= loss_tolerance, (label, setting, dtype, regime)
    assert math.isfinite(gradient_error) and gradient_error <= tolerance, (label, setting, dtype, regime)


def check_row_function(conformance, backend, function, dictionary, n, regime, dtype=torch.float32, device="cpu"):
    """A function of one batch and its gradient on a GPU backend, against the oracle, with the tolerances of the loss."""
    f, on_cpu = dictionary.num_features, dictionary.to("cpu")
    case = make_case(on_cpu, n, regime, dtype)
    h, exact = case.views[0].to(device, copy=True).requires_grad_(), case.views[0].double().requires_grad_()
    expected = getattr(reference, function)(exact, on_cpu, temperature=case.temperature)
    rows = n if function == "mean_assignment" else 1
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(5)) * rows
    (expected_gradient,) = torch.autograd.grad(expected, exact, upstream.double())
    result = getattr(cplearn_kernels, function)(h, dictionary, temperature=case.temperature, backend=backend)
    (gradient,) = torch.autograd.grad(result, h, upstream.to(device))
    scale = upstream.norm().item() * math.sqrt(f) / case.temperature / rows
    value_error = relative_error(result.detach().cpu(), expected.detach(), 0.0)
    gradient_error = relative_error(gradient.cpu(), expected_gradient, 1e-2 * scale)
    large = bool(reference.logits(exact, on_cpu, temperature=case.temperature).abs().max() > LARGE_LOGIT)
    tolerance = LARGE_LOGIT_GRADIENT_TOLERANCE if large else GRADIENT_TOLERANCE
    few = FEW_FEATURES_TOLERANCES[1] if f <= FEW_FEATURES else 0
    gradient_tolerance = max(tolerance, CAST_TOLERANCE.get(dtype, 0), few)
    name = ("f <= 16, " if few else "") + ("logits > 60" if large else "logits <= 60")
    conformance.record(backend, function, dtype, name, value_error, gradient_error, gradient_tolerance)
    assert value_error <= tolerance, (regime, dictionary)
    assert gradient_error <= gradient_tolerance, (regime, dictionary)
