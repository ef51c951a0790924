"""Times several calls in turns, so that whatever else the machine does falls on all of them alike."""

from __future__ import annotations

import gc
import math
import statistics
import time
from typing import Any, Callable, Mapping, Sequence

# A call far shorter than this is repeated within its turn: 0.2 s is long against the scheduler's time slices.
TURN_SECONDS = 0.2
MOST_REPEATS = 200


def alternate(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int,
    *,
    turn_seconds: float = TURN_SECONDS,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds per call for every round and every call.

    Each call is warmed up twice, the second time to learn how often it fits into a turn. Then every round gives each
    call one turn, in the order given in even rounds and reversed in odd ones, so that no call always runs on the
    cache its neighbour leaves behind.

    Args:
        calls: the callables by name.
        rounds: number of measured rounds, at least 1.
        turn_seconds: how long a turn should last at least.
        clock: a monotonic clock in seconds.

    Returns:
        For each name `rounds` numbers; entry r of all names comes from the same round.
    """
    if rounds < 1:
        raise ValueError(f"rounds = {rounds}; expected at least 1")
    repeats = {}
    for name, call in calls.items():
        call()
        began = clock()
        call()
        took = max(clock() - began, 1e-9)
        repeats[name] = min(max(math.ceil(turn_seconds / took), 1), MOST_REPEATS)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    for index in range(rounds):
        order = list(calls) if index % 2 == 0 else list(reversed(calls))
        for name in order:
            call, count = calls[name], repeats[name]
            began = clock()
            for _ in range(count):
                call()
            seconds[name].append((clock() - began) / count)
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and extremes of `values`."""
    ordered = sorted(values)
    if len(ordered) > 1:
        first, _, third = statistics.quantiles(ordered, n=4, method="inclusive")
    else:
        first = third = ordered[0]
    return {
        "median": statistics.median(ordered),
        "q1": first,
        "q3": third,
        "min": ordered[0],
        "max": ordered[-1],
    }


def ratios(slower: Sequence[float], faster: Sequence[float]) -> list[float]:
    """How many times as long `slower` took, round by round.

    Dividing within a round cancels what slowed both; the ratio of two medians would not.
    """
    if len(slower) != len(faster):
        raise ValueError(f"{len(slower)} rounds against {len(faster)}; ratios need the same rounds")
    return [a / b for a, b in zip(slower, faster)]
