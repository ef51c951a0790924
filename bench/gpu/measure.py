"""Measures rows one after the other in one process: accuracy first, then time and memory of columns that take turns.

`python -m bench.gpu.measure OPTIONS`, with JSON: `record`, `rows` (steps), `backends`, `rounds`, `dry_run`. What is
being done is noted in the record before it begins. A row that hangs ends the process, and so does an error outside of a
column or one that leaves the device unusable; `bench.gpu` starts another process for the rows that are left.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.accuracy import compare, limits_of, oracle, too_far
from bench.cases import FORMULAS, Case
from bench.gpu import record
from bench.gpu.rows import ROWS, columns, most_seconds, step_of, tiny
from bench.implementations import Problem, build
from bench.timing import alternate, spread

MOST_SECONDS = 20.0  # a column whose rounds would take longer keeps the time of a single call
TURN_SECONDS = 0.04
# Sums of 10^9 float32 terms are good to 1e-5 or so; a lost block of codes makes far more.
FULL_SIZE_LIMIT = 1e-4
# Operations in float64 that a check may cost: below a second even where float64 runs at 1/64 of the float32 rate.
_CHECK_OPERATIONS = 1e11


def clock_of(device: torch.device) -> Callable[[], float]:
    """Seconds by the device's own clock: CUDA events, waited for."""
    if device.type != "cuda":
        return time.perf_counter
    start = torch.cuda.Event(enable_timing=True)
    start.record()

    def clock() -> float:
        now = torch.cuda.Event(enable_timing=True)
        now.record()
        now.synchronize()
        return start.elapsed_time(now) * 1e-3

    return clock


def check(backend: str, row: Case, device: torch.device) -> tuple[dict[str, float], str]:
    """Errors of a backend against float64 on the row's n, f and dictionary, and what is too far off.

    As many codes are checked as their float64 products afford, an odd number: `num_codes`.
    """
    # A graph is checked as what it captures; `build` compares its replay with that.
    row = replace(row, function="cplearn_loss") if row.function == "loss_graph" else row
    codes = min(row.num_codes, max(int(_CHECK_OPERATIONS / (12 * row.n * row.num_features)), 256) | 1)
    problem = Problem(row, device, num_codes=codes)
    errors = compare(build(backend, problem)(), oracle(problem), problem)
    return {"num_codes": codes, **errors}, too_far(errors, limits_of(backend, row))


def measure(row: Case, options: dict[str, Any], device: torch.device) -> None:
    """Notes a row's entry in the record again and again: `cells` (column -> what was found), `wrong`, `busy`."""
    entry: dict[str, Any] = {"group": "rows", "step": step_of(row), "busy": "start", "cells": {}, "wrong": []}
    cells, clock, calls = entry["cells"], clock_of(device), {}

    def note(busy: str | None) -> None:
        entry["busy"] = busy
        record.append(Path(options["record"]), entry)

    note("inputs")
    problem = Problem(row, device)
    for column in columns(row, tuple(options["backends"])):
        cell = cells[column] = {}
        note(column)
        try:
            calls[column] = _first_calls(column, problem, cell, clock, options["dry_run"])
        except Exception as error:
            cell["error"] = _message(error)
            note(column)
            if device.type == "cuda":
                torch.cuda.synchronize()  # raises where the device is lost, which ends the process
            gc.collect()  # the traceback's frames hold tensors
    entry["wrong"] += _differing(cells)
    note("turns")
    quick = [name for name in calls if cells[name]["median"] * (options["rounds"] + 2) < MOST_SECONDS]
    if quick:
        turn = 0.0 if options["dry_run"] else TURN_SECONDS
        times = alternate({name: calls[name] for name in quick}, options["rounds"], turn_seconds=turn, clock=clock)
        for name, seconds in times.items():
            cells[name] |= {"seconds": seconds, **spread(seconds)}
    note(None)


def _first_calls(column: str, problem: Problem, cell: dict[str, Any], clock, dry_run: bool) -> Callable[[], Any]:
    """Checks a column, calls it twice, notes the second call's time and peak; returns the call."""
    row, device = problem.case, problem.device
    formula = column in FORMULAS
    if not formula:
        cell["accuracy"], off = check(column, row, device)
        if off:
            cell["wrong"] = f"against float64 {off}"
    call = build(column, problem, dry_run=dry_run)
    results = call()  # compiles, fills caches, makes workspaces
    if not formula and not all(bool(part.isfinite().all()) for part in results):
        cell["wrong"] = "a result is not finite"
    if row.function == "cplearn_loss":
        cell["loss"] = results[0].item()
    del results
    # The arrays of a CUDA graph lie in a pool that no peak shows.
    counted = device.type == "cuda" and row.function != "loss_graph" and not column.startswith("compiled")
    if counted:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    began = clock()
    call()
    seconds = [max(clock() - began, 1e-9)]
    if counted:
        cell["growth_bytes"] = torch.cuda.max_memory_allocated() - before
    cell |= {"seconds": seconds, **spread(seconds)}
    return call


def _differing(cells: dict[str, dict[str, Any]]) -> list[str]:
    """What float32 columns disagree on at full size, which the check, of fewer codes, cannot see."""
    found = {name: cell["loss"] for name, cell in cells.items() if FORMULAS.get(name, "float32") == "float32"
             and math.isfinite(cell.get("loss", math.nan))}  # fmt: skip
    losses = list(found.values()) or [0.0]
    alike = max(losses) - min(losses) <= FULL_SIZE_LIMIT * max(1.0, *map(abs, losses))
    return [] if alike else [f"losses at full size differ: {found}"]


def _message(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:300]


def main(arguments: list[str]) -> int:
    """Measures the rows that are named."""
    options = json.loads(arguments[0])
    device = torch.device("cpu" if options["dry_run"] else "cuda")
    if options["dry_run"]:
        torch.set_num_threads(1)  # tiny tensors gain nothing from threads
    rows = {step_of(row): row for row in (tiny(row) if options["dry_run"] else row for row in ROWS)}
    for name in options["rows"]:
        # The watchdog is a thread in C: Python's own signals wait for a call into the driver, which may never return.
        faulthandler.dump_traceback_later(most_seconds(rows[name]), exit=True)
        print(name, flush=True)
        measure(rows[name], options, device)
        if "compiled" in rows[name].implementations:
            torch.compiler.reset()  # gives memory back, and the next row's formulas compile from an empty state
        faulthandler.cancel_dump_traceback_later()
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
