"""Results: where they are, what pytest-benchmark writes, and how the other benchmarks print and write theirs.

`pytest bench/ --benchmark --benchmark-json=FILE` is pytest-benchmark's own format. What this project adds to an entry
of "benchmarks" stands in its "extra_info":

    "case": name, "dictionary", "n", "num_features", "num_codes", "logits", "implementation", "backend",
    "errors": relative errors against float64, "memory": outcome of `bench.memory`,
    "ratio": how many times as long as the library in the same round, {"median", "min", "max"},
    "targets": in the library's entry, the verdicts of `bench.targets`
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bench.targets import target_rows
from train.machine import slug

RESULTS = Path(__file__).resolve().parent / "results"


class ResultsError(ValueError):
    """A results file is missing, unreadable or of another kind; the message is one sentence."""


def load(path: Path) -> dict[str, Any]:
    """Reads a record of `pytest bench/ --benchmark`."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ResultsError(f"{path}: not a file of JSON that can be read ({error})") from None
    entries = record.get("benchmarks") if isinstance(record, dict) else None
    if not isinstance(entries, list) or not all("implementation" in entry.get("extra_info", {}) for entry in entries):
        raise ResultsError(f"{path}: not written by pytest-benchmark from the benchmarks of bench/")
    return record


def latest() -> Path:
    """The record of `pytest bench/` with the latest date; none is an error that says so."""
    found = sorted(RESULTS.glob("pytest-*.json"))
    if not found:
        raise ResultsError(f"no {RESULTS.name}/pytest-*.json; name a file that `--benchmark-json` wrote")
    return max(found, key=lambda path: load(path)["datetime"])


def machine_line(machine: Mapping[str, Any]) -> str:
    """Where a number comes from, in one line; `machine` is what `train.machine.describe` returns."""
    return (
        f"{machine['cpu']} ({machine['cpu_capability']}), {machine['threads']} threads; torch {machine['torch']}; "
        f"cplearn-kernels {machine['cplearn_kernels']} at {machine['commit'] or 'no commit'}; {machine['date']}; "
        f"load before {machine['load_average']}"
    )


def median_and_range(values: Mapping[str, float], factor: float) -> str:
    """A `bench.timing.spread` in another unit: 3.14 (3.01..3.5)."""
    return "{:.3g} ({:.3g}..{:.3g})".format(*(factor * values[key] for key in ("median", "min", "max")))


def path_for(benchmark: str, machine: Mapping[str, Any]) -> Path:
    """Where a record belongs: benchmark, processor (or GPU) and threads make the file's name."""
    return RESULTS / f"{benchmark}-{slug(machine.get('gpu') or machine['cpu'])}-{machine['threads']}t.json"


def report(record: Mapping[str, Any], tables: Iterable[Sequence[Mapping[str, str]]], path: Path | None) -> int:
    """Prints where a record was measured, its tables and targets, and writes it; the exit status, 1 if one is missed.

    Args:
        record: has "benchmark", "machine" and perhaps "targets".
        tables: rows with a text for each heading.
        path: the file to write; `Path()`: in `bench/results`, None: nowhere.
    """
    verdicts = record.get("targets", [])
    texts = [
        tabulate(rows, "keys", "github", disable_numparse=True) for rows in (*tables, target_rows(verdicts)) if rows
    ]
    print("\n\n".join([machine_line(record["machine"]), *texts]))
    if path is not None:
        path = path_for(record["benchmark"], record["machine"]) if path == Path() else path
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(f"\nwritten: {path.name}")
    return int(not all(verdict["met"] for verdict in verdicts))
