"""The benchmark of `cplearn_loss`: forward and backward, and peak memory, of every case of `bench.cases.CASES`."""

from __future__ import annotations

from functools import partial

import pytest

from bench.cases import CASES, LIBRARY, ONE_THREAD, TIME_PER_CODE, Case, case_named
from bench.implementations import Problem, build
from bench.memory import probe, probe_in_fresh_process
from bench.targets import MEGABYTE, judge_time_per_code, missed
from bench.timing import alternate, repeats_per_turn
from bench.turns import Settings, Turns, each_implementation

# Raised inside torch by torch.compile; nothing here calls torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


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
        cells = {name: {"seconds": seconds} for name, seconds in turns.seconds.items()}
        cells[LIBRARY] |= extra["memory"]
        baselines = {target.against for target in case.targets if target.kind == "memory" and target.against}
        cells |= {name: memory(LIBRARY, case_named(name)) for name in baselines}
        verdicts = [verdict for target in case.targets if (verdict := target.judge(cells, case.logits))]
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
    cases = {c: Case(64, 128, c) for c in TIME_PER_CODE["num_codes"]}
    shown = cases if settings.measuring else {c: case.shrunk() for c, case in cases.items()}
    calls = {c: build(LIBRARY, Problem(case), settings.backend) for c, case in shown.items()}
    repeats = repeats_per_turn(calls, settings.turn_seconds)
    seconds = alternate(calls, settings.rounds, repeats=repeats)
    last, verdict = max(cases), judge_time_per_code(seconds, TIME_PER_CODE["within"])
    turns = Turns(cases[last], {LIBRARY: seconds[last]}, {LIBRARY: repeats[last]})
    entry(turns, LIBRARY, group="time_per_code", targets=[verdict], seconds={str(c): seconds[c] for c in cases})
    if settings.measuring and not verdict["met"]:
        pytest.fail(missed([verdict]), pytrace=False)
