"""The benchmark of the functions of one batch, and of the loss without gradients: the library against backend torch."""

from __future__ import annotations

import pytest
import torch

from bench.cases import FUNCTION_CASES, LIBRARY, case_named
from bench.implementations import Problem, function_call
from bench.timing import alternate, repeats_per_turn
from bench.turns import Settings, Turns, each_implementation, selected

# Relative errors of the value, as a norm, and of the gradient. Both are checked in the tests over many shapes; here they
# show that what is timed is the function: a wrong temperature or a missing term is an error of order 1.
LIMITS = {"value": 1e-5, "gradient": 1e-4}


@pytest.fixture(scope="module")
def turns(request: pytest.FixtureRequest, settings: Settings) -> Turns:
    """The library and backend torch on a case, each of them compared with float64, timed in turns."""
    case = case_named(request.param)
    case = case if settings.measuring else case.shrunk()
    problem, turns = Problem(case), Turns(case)
    expected = function_call(LIBRARY, Problem(case, torch.float64), "reference")()
    calls = {name: function_call(name, problem, settings.backend) for name in selected(request)}
    for name, call in calls.items():
        errors = [float((got - exact).norm() / exact.norm()) for got, exact in zip(call(), expected, strict=True)]
        turns.errors[name] = dict(zip(LIMITS, errors, strict=False))
        for what, error in turns.errors[name].items():
            assert error <= LIMITS[what], f"{name}: {what} is off by {error}, allowed {LIMITS[what]}"
    turns.repeats = repeats_per_turn(calls, settings.turn_seconds)
    turns.seconds = alternate(calls, settings.rounds, repeats=turns.repeats)
    return turns


@each_implementation(FUNCTION_CASES)
def test_row_function(turns: Turns, implementation: str, entry) -> None:
    """One implementation's time."""
    entry(turns, implementation, errors=turns.errors[implementation])
