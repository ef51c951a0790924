"""Checks that an implementation computes what it is timed for, against float64."""

from __future__ import annotations

import math

import torch

from bench.cases import FORMULAS, Case
from bench.implementations import Problem, Results, build

# Relative errors: (value, gradient). The library has to meet the tolerances of its own tests. The formulas in plain
# float32 have no such promise: an (n, c) softmax there carries the rounding of logits of size 20, 20 * 2**-24 = 1e-6 in
# each p, and the authors' formula adds that of log(softmax). Ten times the library's tolerances is above that and far
# below any real mistake: dropping the gradient of the target, for example, is an error of order 1. Functions of a batch
# are checked in the tests over many shapes; here it shows that what is timed is the function.
LIBRARY_LIMITS = (1e-6, 1e-5)
FORMULA_LIMITS = (1e-5, 1e-4)
FUNCTION_LIMITS = (1e-5, 1e-5)


def limits_of(implementation: str, case: Case) -> tuple[float, float]:
    """The tolerances that an implementation is held to."""
    if "loss" not in case.function:
        return FUNCTION_LIMITS
    return FORMULA_LIMITS if implementation in FORMULAS else LIBRARY_LIMITS


def oracle(problem: Problem) -> Results:
    """What a call on this problem has to return: the float64 reference on the same numbers."""
    codes = problem.dictionary.num_codes
    return build("reference", Problem(problem.case, problem.device, torch.float64, codes))()


def compare(got: Results, expected: Results, problem: Problem) -> dict[str, float]:
    """How far the value and the gradients together of `got` are from `expected`, relative to their norms.

    Floors keep these scales where an error relative to a norm would mean nothing. For the loss: 1, and for its
    gradient, which vanishes near the optimum, 0.01 * sqrt(f / n) / (2 * temperature). For expected codes, which are
    close to zero where a softmax is nearly uniform, 0.01 in each coordinate.
    """
    case, size = problem.case, expected[0].numel()
    floors = {"expected_code": (0.01 * math.sqrt(size), 0.0)}
    if "loss" in case.function:
        floors[case.function] = (1.0, 0.01 * math.sqrt(case.num_features / case.n) / (2 * problem.temperature))
    floor, gradient_floor = floors.get(case.function, (0.0, 0.0))
    errors = {"value": _distance(got[:1], expected[:1], floor)}
    if len(expected) > 1:
        errors["gradient"] = _distance(got[1:], expected[1:], gradient_floor)
    return errors


def _distance(got: Results, expected: Results, floor: float) -> float:
    got, expected = (torch.cat([part.double().flatten() for part in parts]) for parts in (got, expected))
    return (got - expected).norm().item() / max(expected.norm().item(), floor)


def too_far(errors: dict[str, float], limits: tuple[float, float]) -> str:
    """What is off, in a sentence; empty where every error is at most its limit, which NaN is not."""
    off = [f"{name} is off by {error}, allowed {limit}" for (name, error), limit in zip(errors.items(), limits)
           if not error <= limit]  # fmt: skip
    return "; ".join(off)
