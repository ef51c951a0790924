"""What lies between calls that take turns and pytest-benchmark, which times one call after the other.

A case is measured first, all its implementations in turns (`bench.timing.alternate`). Then each implementation's entry
is timed by pytest-benchmark with a clock that shows the seconds which its turns took: every number in
pytest-benchmark's tables and files is one that was measured.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest
import torch

from bench.accuracy import compare, limits_of, oracle, too_far
from bench.cases import LIBRARY, Case
from bench.implementations import Problem, build
from bench.timing import alternate, repeats_per_turn


@dataclass(frozen=True)
class Settings:
    """How this run goes: whether it measures or only checks, and with what."""

    measuring: bool
    full: bool
    backend: str
    threads: int
    rounds: int
    turn_seconds: float


@dataclass
class Turns:
    """What a case's implementations took, round by round."""

    case: Case
    seconds: dict[str, list[float]] = field(default_factory=dict)
    repeats: dict[str, int] = field(default_factory=dict)
    errors: dict[str, dict[str, float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def take_turns(case: Case, names: Sequence[str], settings: Settings) -> Turns:
    """The implementations of a case, each of them compared with float64, timed in turns."""
    case = case if settings.measuring else case.shrunk()
    problem, turns, calls = Problem(case), Turns(case), {}
    torch.compiler.reset()  # a case is compiled for its own shapes and never meets torch's limit on recompilations
    # At full size the cases with the library alone are those whose dense codes would not fit.
    expected = oracle(problem) if len(case.implementations) > 1 or not settings.measuring else None
    for name in names:
        call = build(name, problem, settings.backend)
        try:
            got = call()
        except Exception as error:
            # A machine without a C++ compiler can still measure the rest.
            if name != "compiled" or not settings.measuring:
                raise
            turns.failures[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            continue
        calls[name] = call
        assert all(part.isfinite().all() for part in got), f"{name}: not finite"
        if expected is not None:
            turns.errors[name] = compare(got, expected, problem)
            assert not (off := too_far(turns.errors[name], limits_of(name, case))), f"{name}: {off}"
    turns.repeats = repeats_per_turn(calls, settings.turn_seconds)
    turns.seconds = alternate(calls, settings.rounds, repeats=turns.repeats)
    return turns


def each_implementation(cases: Sequence[Case]) -> pytest.MarkDecorator:
    """Parametrises a test by a case, which the fixture `turns` measures once, and each of its implementations."""
    # pytest keeps a fixture as long as its parameter is the same object, not an equal one.
    names = [case.name for case in cases]
    pairs = [(name, which) for name, case in zip(names, cases, strict=True) for which in case.implementations]
    return pytest.mark.parametrize(("turns", "implementation"), pairs, indirect=["turns"], scope="module")


def params_of(item: pytest.Item) -> Mapping[str, str]:
    """The parameters of a test by name; "turns" names the case."""
    return item.callspec.params if hasattr(item, "callspec") else {}


def selected(request: pytest.FixtureRequest) -> list[str]:
    """The implementations of the fixture's case that this run has selected; the library always, for the ratios."""
    every = (params_of(item) for item in request.session.items)
    chosen = [params["implementation"] for params in every if params.get("turns") == request.param]
    return [LIBRARY, *(name for name in chosen if name != LIBRARY)]


_now = 0.0


def seconds_of_the_turns() -> float:
    """The clock by which pytest-benchmark times an entry."""
    return _now


def replay(benchmark, turns: Turns, implementation: str) -> None:
    """Lets pytest-benchmark time the turns of an implementation, which the clock above goes through."""
    global _now
    taken, repeats = turns.seconds[implementation], turns.repeats[implementation]
    # One call more than was measured: pytest-benchmark asks for a result at the end.
    calls = itertools.chain((seconds for seconds in taken for _ in range(repeats)), itertools.repeat(0.0))

    def call() -> None:
        global _now
        _now += next(calls)

    _now = 0.0
    benchmark.pedantic(call, rounds=len(taken), iterations=repeats)
