"""Tests and measures the library on this machine's GPU within a few minutes; needs no network.

Steps, each a process with a time limit of its own, in order of value: the GPU tests of both backends, benchmark rows
with their targets, compute-sanitizer on small calls, and, where asked, the tuner. Every outcome is written at once to
DIR/steps.jsonl (a line each) and all output to DIR/log.txt, so that a crash, a hang or the end of the time loses
nothing; DIR/table.txt holds the table that is printed last. Exit status: 0; 1 where a test failed, a result was wrong,
a step crashed, the sanitizer found an error or no row could be measured (a missed target does not count); 2 without a
GPU.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from bench.gpu import record, sanitizer, tests
from bench.gpu.machine import adopt_core
from bench.gpu.process import in_turn, run
from bench.gpu.rows import BACKENDS, ROWS, step_of, tiny
from bench.gpu.table import text

# How the time is shared out; what a group leaves over goes to those after it.
WEIGHTS = {"tests": 9, "rows": 8, "sanitizer": 5, "tune": 10}
RESERVE_SECONDS = 4.0  # for ending processes and printing
LEAST_SECONDS = 10.0  # a step is not begun with less
MEASURE = ("-m", "bench.gpu.measure")
DRY_CALLS = ("--backend", "torch", "--device", "cpu", "--most-features", "64")


class Run:
    """A run into a folder; one method per group of steps, each done before the moment `until`."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.path, self.log = given, given.out / record.FILE, given.out / "log.txt"
        self.backends: dict[str, str | None] = {}  # name -> None, or why it is left out

    def add(self, group: str, step: str, found: dict[str, Any]) -> None:
        """Notes an outcome."""
        record.append(self.path, {"group": group, "step": step, **found})

    def machine(self, seconds: float) -> str | None:
        """Describes the machine; returns why nothing can be measured, if so."""
        ended = run([sys.executable, "-m", "bench.gpu.machine"], seconds, self.log)
        lines = [line for line in ended.text.splitlines() if line.startswith("{")]
        if not lines:
            return f"the machine could not be described within {ended.seconds:.0f} s; see {self.log}"
        found, dry_run = json.loads(lines[-1]), self.given.dry_run
        self.add("machine", "machine", {**found, "dry_run": dry_run})
        wanted = self.given.backends or (["torch"] if dry_run else BACKENDS)
        known = {name: found["backends"].get(name, "no such backend") for name in (*BACKENDS, *wanted)}
        self.backends = {name: known[name] if name in wanted else "not asked for" for name in known}
        unable = found["gpu"] is None and not dry_run
        return "torch sees no CUDA or ROCm GPU here; --dry-run goes the whole way on the CPU" if unable else None

    def tests(self, until: float) -> None:
        """The GPU tests of the backends."""
        files = {file: self.backends[name] for name, of in tests.FILES.items() for file in of}
        if self.given.dry_run:
            files = dict.fromkeys(tests.DRY_FILES)
        for file in [file for file, reason in files.items() if reason is not None]:
            self.add("tests", file, {"left_out": files.pop(file)})
        for file, seconds in in_turn(list(files), until):
            late = seconds < LEAST_SECONDS
            self.add("tests", file, {"left_out": "time"} if late else tests.run_file(file, seconds, self.log))

    def rows(self, until: float) -> None:
        """The benchmark rows: one process after another, each for the rows that no process has begun."""
        dry_run = self.given.dry_run
        names = [step_of(tiny(row) if dry_run else row) for row in ROWS if re.search(self.given.rows, step_of(row))]
        options = {"record": str(self.path), "rounds": self.given.rounds, "dry_run": dry_run,
                   "backends": [name for name in self.backends if self.backends[name] is None]}  # fmt: skip
        while names and time.monotonic() < until:
            told = json.dumps({**options, "rows": names})
            run([sys.executable, *MEASURE, told], until - time.monotonic(), self.log)
            begun = {entry["step"] for entry in record.read(self.path)}
            if names[0] not in begun:  # it never came to a row, and another would not either
                return self.add("rows", names[0], {"busy": f"the start; see {self.log}", "cells": {}, "wrong": []})
            names = [name for name in names if name not in begun]
        return None

    def sanitizer(self, until: float) -> None:
        """The small calls under each tool; in a dry run on the CPU without one."""
        if self.given.dry_run:
            found = sanitizer.run_tool("", until - time.monotonic(), self.log, DRY_CALLS, ())
            return self.add("sanitizer", "calls", found)
        found = shutil.which(sanitizer.PROGRAM)
        reason = self.backends["cuda"] or (None if found else f"{sanitizer.PROGRAM} was not found")
        for tool, seconds in in_turn(sanitizer.TOOLS, until):
            why = reason or ("time" if seconds < LEAST_SECONDS else None)
            self.add("sanitizer", tool, {"left_out": why} if why else sanitizer.run_tool(tool, seconds, self.log))
        return None

    def tune(self, until: float) -> None:
        """Triton's configurations by measurement, into DIR/tuning.json."""
        command = [sys.executable, "-m", "bench.gpu.tune", "--table", str(self.given.out / "tuning.json")]
        ended = run(command, until - time.monotonic(), self.log)
        self.add("tune", "tune", {"last": (ended.text.strip().splitlines() or ["no output"])[-1][:300]})


def status(entries: list[dict[str, Any]], wanted: list[str]) -> int:
    """The exit status that a record deserves, where these groups of steps were asked for."""
    rows = [entry for entry in entries if entry["group"] == "rows"]
    library = [cell for entry in rows for name, cell in entry["cells"].items() if name in BACKENDS]
    bad = any(not entry.get("ok", True) or entry.get("wrong") or entry.get("busy") for entry in entries)
    bad |= any("wrong" in cell or "error" in cell for cell in library)
    return int(bad or ("rows" in wanted and not any("median" in cell for cell in library)))


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    began = time.monotonic()
    given = _parser().parse_args(arguments)
    given.out = given.out.resolve()
    given.out.mkdir(parents=True, exist_ok=True)
    current = Run(given)
    for path in (current.path, current.log):
        path.unlink(missing_ok=True)
    if adopted := adopt_core():
        print(adopted, file=sys.stderr)
    until = began + given.seconds - RESERVE_SECONDS
    groups = [*given.steps, *["tune"] * given.tune]
    try:
        if refused := current.machine(min(60.0, until - time.monotonic())):
            print(f"bench.gpu: {refused}", file=sys.stderr)
            return 2
        for index, group in enumerate(groups):
            share = WEIGHTS[group] / sum(WEIGHTS[later] for later in groups[index:])
            now = time.monotonic()
            getattr(current, group)(now + share * (until - now))
            print(f"{group}: done after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("bench.gpu: interrupted", file=sys.stderr)
    entries = record.read(current.path)
    (given.out / "table.txt").write_text(text(entries, most=1 << 30) + "\n")
    print(text(entries))
    return status(entries, groups)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = {"type": lambda names: names.split(","), "metavar": "NAME[,NAME]"}
    steps = ["tests", "rows", "sanitizer"]
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="a former run's files in it are replaced")
    add("--seconds", type=float, default=540.0, help="from start to finish (default: %(default)s)")
    add("--steps", default=steps, help="some of tests, rows, sanitizer (default: all)", **names)
    add("--backends", help="of the library (default: cuda, triton, torch; in a dry run torch)", **names)
    add("--rows", default="", metavar="PATTERN", help="only rows whose name has this regular expression")
    add("--rounds", type=int, default=5, help="turns of each column of a row (default: %(default)s)")
    add("--tune", action="store_true", help="tune Triton's configurations last, into DIR/tuning.json")
    add("--dry-run", action="store_true", help="go the whole way on the CPU with tiny shapes")
    return parser


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    # Whoever ends it still gets what there is; a shell that starts it in the background lets it ignore SIGINT.
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    sys.exit(main())
