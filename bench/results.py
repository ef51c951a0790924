"""Reading the JSON that pytest-benchmark writes, and where results of all benchmarks are.

`pytest bench/ --benchmark --benchmark-json=FILE` is pytest-benchmark's own format. What this project adds to an entry of
"benchmarks" stands in its "extra_info":

    "case": name, "dictionary", "n", "num_features", "num_codes", "logits", "implementation", "backend",
    "errors": relative errors against float64, "memory": outcome of `bench.memory`,
    "ratio": how many times as long as the library in the same round, {"median", "q1", "q3", "min", "max"},
    "targets": in the library's entry, the verdicts of `bench.targets`
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train.machine import describe, slug

__all__ = ["RESULTS", "ResultsError", "describe", "latest", "load", "machine_line", "path_for", "slug", "write_json"]

RESULTS = Path(__file__).resolve().parent / "results"


class ResultsError(ValueError):
    """A results file is missing, unreadable or of another kind; the message is one sentence."""


def load(path: Path) -> dict[str, Any]:
    """Reads a record of `pytest bench/ --benchmark`."""
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        raise ResultsError(
            f"{path}: no such file; `pytest bench/ --benchmark --benchmark-json=FILE` writes one"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ResultsError(f"{path}: not a readable JSON file ({error})") from None
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
    """Where a number comes from, in one line; `machine` is what `describe` returns."""
    return (
        f"{machine['cpu']} ({machine['cpu_capability']}), {machine['threads']} threads; torch {machine['torch']}; "
        f"cplearn-kernels {machine['cplearn_kernels']} at {machine['commit'] or 'no commit'}; {machine['date']}; "
        f"load before {machine['load_average']}"
    )


def path_for(benchmark: str, machine: Mapping[str, Any]) -> Path:
    """Where a record belongs: benchmark, processor (or GPU) and threads make the file's name."""
    return RESULTS / f"{benchmark}-{slug(machine.get('gpu') or machine['cpu'])}-{machine['threads']}t.json"


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a record as JSON."""
    path.write_text(json.dumps(record, indent=1) + "\n")
