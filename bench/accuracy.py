"""Checks that an implementation computes the loss and the gradient it is timed for, against float64."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from bench.cases import FORMULAS
from bench.formulas import tidy_loss
from bench.implementations import Problem


@dataclass(frozen=True)
class Accuracy:
    """Relative errors of the loss, and of both gradients together."""

    loss: float
    gradient: float

    def within(self, limit: Accuracy) -> bool:
        """Whether both errors are at most the limit's; NaN is not."""
        return self.loss <= limit.loss and self.gradient <= limit.gradient

    def as_dict(self) -> dict[str, float]:
        """The two numbers by name, for the JSON."""
        return asdict(self)


# The library has to meet the tolerances of its own tests. The formulas in plain float32 have no such promise: an (n, c)
# softmax there carries the rounding of logits of size 20, 20 * 2**-24 = 1e-6 in each p, and the authors' formula adds
# that of log(softmax). Ten times the library's tolerances is above that and far below any real mistake: dropping the
# gradient of the target, for example, is an error of order 1.
LIBRARY_LIMIT = Accuracy(loss=1e-6, gradient=1e-5)
FORMULA_LIMIT = Accuracy(loss=1e-5, gradient=1e-4)


def limit_of(implementation: str) -> Accuracy:
    """The tolerance that an implementation is held to."""
    return FORMULA_LIMIT if implementation in FORMULAS else LIBRARY_LIMIT


def oracle(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients of the problem in float64, from the tidy formula."""
    h1 = problem.h1.detach().double().requires_grad_()
    h2 = problem.h2.detach().double().requires_grad_()
    value = tidy_loss(h1, h2, problem.weight.double(), problem.temperature)
    grad1, grad2 = torch.autograd.grad(value, (h1, h2))
    return value.detach(), grad1, grad2


def compare(
    got: tuple[Tensor, Tensor, Tensor], expected: tuple[Tensor, Tensor, Tensor], temperature: float
) -> Accuracy:
    """How far `got` (loss, gradient of h1, gradient of h2) is from `expected`.

    The gradient's scale has a floor, 0.01 * sqrt(f / n) / (2 * temperature): near the optimum the gradient vanishes
    and an error relative to it alone would mean nothing.
    """
    loss = abs(got[0].double() - expected[0]).item() / max(abs(expected[0].item()), 1.0)
    n, f = expected[1].shape
    difference = torch.cat([g.double() - e for g, e in zip(got[1:], expected[1:], strict=True)])
    scale = max(torch.cat(expected[1:]).norm().item(), 0.01 * math.sqrt(f / n) / (2 * temperature))
    return Accuracy(loss=loss, gradient=difference.norm().item() / scale)
