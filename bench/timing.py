"""Times several calls in turns, so that whatever else the machine does falls on all of them alike."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# A call far shorter than this is repeated within its turn: 0.2 s is long against the scheduler's time slices.
TURN_SECONDS = 0.2
MOST_REPEATS = 2000

Calls = Mapping[str, Callable[[], Any]]
Clock = Callable[[], float]


def repeats_per_turn(calls: Calls, turn_seconds: float, clock: Clock = time.perf_counter) -> dict[str, int]:
    """How often each call has to be repeated to fill a turn. Calls it twice: the first call warms up."""
    repeats = {}
    for name, call in calls.items():
        call()
        began = clock()
        call()
        took = max(clock() - began, 1e-9)
        repeats[name] = min(max(math.ceil(turn_seconds / took), 1), MOST_REPEATS)
    return repeats


def alternate(
    calls: Calls,
    rounds: int,
    *,
    turn_seconds: float = TURN_SECONDS,
    repeats: Mapping[str, int] | None = None,
    clock: Clock = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds per call by name, a number per round; entry r of all names comes from the same round.

    Every round gives each call one turn, in the order given in even rounds and reversed in odd ones, so that no call
    always runs on the cache its neighbour leaves behind. Garbage is collected between rounds only.

    A turn lasts at least `turn_seconds`, or has `repeats` calls by name, which are warm then. `clock` counts seconds.
    """
    if rounds < 1:
        raise ValueError(f"rounds = {rounds}; expected at least 1")
    if repeats is None:
        repeats = repeats_per_turn(calls, turn_seconds, clock)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    collecting = gc.isenabled()
    try:
        for index in range(rounds):
            gc.collect()
            gc.disable()
            for name in list(calls) if index % 2 == 0 else list(reversed(calls)):
                call, count = calls[name], repeats[name]
                began = clock()
                for _ in range(count):
                    call()
                seconds[name].append((clock() - began) / count)
    finally:
        if collecting:
            gc.enable()
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and extremes of `values`."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(slower: Sequence[float], faster: Sequence[float]) -> list[float]:
    """How many times as long `slower` took, round by round; a single number stands for all rounds.

    Dividing within a round cancels what slowed both; the ratio of two medians would not.
    """
    rounds = max(len(slower), len(faster))
    slower, faster = (list(side) * (rounds if len(side) == 1 else 1) for side in (slower, faster))
    if len(slower) != len(faster):
        raise ValueError(f"{len(slower)} rounds against {len(faster)}; ratios need the same rounds")
    return [a / b for a, b in zip(slower, faster)]
