"""The benchmark of `cplearn_loss`: forward and backward, and peak memory, of every case of `bench.cases.CASES`."""

from __future__ import annotations

from functools import partial

import pytest

from bench.accuracy import compare, limit_of, oracle
from bench.cases import CASES, LIBRARY, ONE_THREAD, TIME_PER_CODE, Case, case_named
from bench.implementations import Problem, build_loss, forward_backward
from bench.memory import probe, probe_in_fresh_process
from bench.targets import MEGABYTE, missed
from bench.timing import alternate, repeats_per_turn
from bench.turns import Settings, Turns, each_implementation, selected

# Raised inside torch by torch.compile; nothing here calls torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


@pytest.fixture(scope="module")
def turns(request: pytest.FixtureRequest, settings: Settings) -> Turns:
    """The implementations of a case, each of them compared with float64, timed in turns."""
    case = case_named(request.param)
    case = case if settings.measuring else case.shrunk()
    problem, turns, calls = Problem(case), Turns(case), {}
    # At full size the cases with the library alone are those whose dense codes would not fit.
    expected = oracle(problem) if len(case.implementations) > 1 or not settings.measuring else None
    for name in selected(request):
        loss = build_loss(name, problem, settings.backend)
        try:
            got = forward_backward(loss, problem)
        except Exception as error:
            # A machine without a C++ compiler can still measure the rest.
            if name != "compiled" or not settings.measuring:
                raise
            turns.failures[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            continue
        calls[name] = partial(forward_backward, loss, problem)
        assert all(part.isfinite().all() for part in got), f"{name}: not finite"
        if expected is not None:
            accuracy = compare(got, expected, problem.temperature)
            assert accuracy.within(limit_of(name)), f"{name}: {accuracy}, allowed {limit_of(name)}"
            turns.errors[name] = accuracy.as_dict()
    turns.repeats = repeats_per_turn(calls, settings.turn_seconds)
    turns.seconds = alternate(calls, settings.rounds, repeats=turns.repeats)
    return turns


@each_implementation(CASES)
def test_loss(turns: Turns, implementation: str, entry, settings: Settings) -> None:
    """One implementation's time and peak memory; the library's targets."""
    case = turns.case
    if implementation in turns.failures:
        pytest.skip(turns.failures[implementation])
    if not settings.measuring:
        entry(turns, implementation)
        if implementation == LIBRARY:
            _check_memory(case, settings)
        return
    memory = partial(probe_in_fresh_process, backend=settings.backend, threads=settings.threads)
    extra, verdicts = {"errors": turns.errors.get(implementation)}, []
    # A process that compiles takes long, and one thread holds what two do.
    if settings.full or implementation not in ("compiled", ONE_THREAD):
        extra["memory"] = memory(implementation, case)
    if implementation == LIBRARY:
        verdicts = [verdict for target in case.targets if (verdict := target.judge(turns.seconds, case.logits))]
        if target := case.memory:
            baseline = memory(LIBRARY, case_named(target.baseline)) if target.baseline else None
            verdicts.append(target.judge(extra["memory"], baseline))
    entry(turns, implementation, targets=verdicts, **extra)
    if sentence := missed(verdicts):
        pytest.fail(sentence, pytrace=False)


def _check_memory(case: Case, settings: Settings) -> None:
    """Below the 134 MB of the dense dictionary of the largest shrunk case of f = 2048: no codes are held.

    The oracle backend holds them by design.
    """
    found = probe(LIBRARY, case, settings.backend)
    assert found["codes_bytes"] == 0
    assert settings.backend == "reference" or found["growth_bytes"] < 64 * MEGABYTE


def test_time_per_code(entry, settings: Settings) -> None:
    """The library with more and more codes, in turns: cases timed one after the other would be compared across minutes,
    in which a shared machine changes. The entry is the case with most codes."""
    cases = {c: Case(64, 128, c) for c in TIME_PER_CODE.num_codes}
    problems = {c: Problem(case if settings.measuring else case.shrunk()) for c, case in cases.items()}
    calls = {
        c: partial(forward_backward, build_loss(LIBRARY, problem, settings.backend), problem)
        for c, problem in problems.items()
    }
    repeats = repeats_per_turn(calls, settings.turn_seconds)
    seconds = alternate(calls, settings.rounds, repeats=repeats)
    last = TIME_PER_CODE.num_codes[-1]
    verdict = TIME_PER_CODE.judge(seconds)
    turns = Turns(cases[last], {LIBRARY: seconds[last]}, {LIBRARY: repeats[last]})
    entry(turns, LIBRARY, group="time_per_code", targets=[verdict], seconds={str(c): seconds[c] for c in cases})
    if settings.measuring and not verdict["met"]:
        pytest.fail(missed([verdict]), pytrace=False)
