"""The JSON that a benchmark run leaves behind: how it is built, checked, written and read.

    {"schema": 2, "benchmark": "cplearn_loss",
     "machine":  what `train.machine.describe` returns,
     "settings": {"backend", "rounds", "full"},
     "rows": [{"name", "dictionary", "n", "num_features", "num_codes",
               "columns": {column: {"forward_backward": timing, "forward": timing, "memory": bytes, "error": text}},
               "ratios":  {column: {"forward_backward": spread, "forward": spread}},
               "agreement": {column: {"loss", "gradient"}},
               "linear": {row: spread}}],
     "bars": what `bench.targets.judge` returns}

A timing is {"seconds": one number per round, "median", "q1", "q3", "min", "max"}; a ratio is how many times as long as
the library that column took, round by round. `linear`, in the last row of a `LinearBar`, is the library's time per code
in each of the bar's rows as a multiple of that in the last, all of them timed in turns. A part that was not measured is
absent; a column that could not run has `error` and says why.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Mapping, Sequence

from bench.targets import judge
from train.machine import slug
from bench.cases import COLUMN_TITLES, LIBRARY, Row
from bench.timing import ratios, spread

SCHEMA = 2
RESULTS = Path(__file__).resolve().parent / "results"

_ROW_KEYS = {"name": str, "dictionary": str, "n": int, "num_features": int, "num_codes": int, "columns": dict,
             "ratios": dict, "agreement": dict}
_TOP_KEYS = {"schema": int, "benchmark": str, "machine": dict, "settings": dict, "rows": list, "bars": list}
_SPREAD_KEYS = {"median", "q1", "q3", "min", "max"}


class ResultsError(ValueError):
    """A results file is missing, unreadable or not of this schema; the message is one sentence."""


class Collector:
    """Gathers the parts of a record as tests measure them, in any order."""

    def __init__(self, benchmark: str, machine: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        self._record = {"schema": SCHEMA, "benchmark": benchmark, "machine": dict(machine), "settings": dict(settings)}
        self._rows: dict[str, dict[str, Any]] = {}

    def _row(self, row: Row) -> dict[str, Any]:
        empty = {"name": row.name, "dictionary": row.dictionary, "n": row.n, "num_features": row.num_features,
                 "num_codes": row.num_codes, "columns": {}, "ratios": {}, "agreement": {}}
        return self._rows.setdefault(row.name, empty)

    def add_times(self, row: Row, what: str, seconds: Mapping[str, list[float]]) -> None:
        """Seconds per call and round of every column; `what` is "forward_backward" or "forward"."""
        entry = self._row(row)
        for column, values in seconds.items():
            entry["columns"].setdefault(column, {})[what] = {"seconds": list(values), **spread(values)}
            if column != LIBRARY and LIBRARY in seconds:
                entry["ratios"].setdefault(column, {})[what] = spread(ratios(values, seconds[LIBRARY]))

    def add_linear(self, rows: Sequence[Row], seconds: Mapping[str, list[float]]) -> None:
        """Seconds per call and round of the library on each of `rows`, by name, timed in turns."""
        last = rows[-1]
        per_code = {row.name: [time / row.num_codes for time in seconds[row.name]] for row in rows}
        self._row(last)["linear"] = {name: spread(ratios(times, per_code[last.name])) for name, times in per_code.items()}

    def add_memory(self, row: Row, column: str, memory: Mapping[str, int]) -> None:
        """The outcome of a memory probe."""
        self._row(row)["columns"].setdefault(column, {})["memory"] = dict(memory)

    def add_agreement(self, row: Row, column: str, agreement: Mapping[str, float]) -> None:
        """Errors of a column against float64."""
        self._row(row)["agreement"][column] = dict(agreement)

    def add_error(self, row: Row, column: str, reason: str) -> None:
        """Why a column could not run."""
        self._row(row)["columns"].setdefault(column, {})["error"] = reason

    def record(self) -> dict[str, Any]:
        """Everything gathered so far, with the bars judged."""
        rows = list(self._rows.values())
        return {**self._record, "rows": rows, "bars": judge(rows)}


def default_path(record: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Where a record belongs: benchmark, backend, processor and threads make the file's name."""
    machine = record["machine"]
    name = f"{record['benchmark']}-{record['settings']['backend']}-{slug(machine['cpu'])}-{machine['threads']}t.json"
    return folder / name


def save(record: Mapping[str, Any], path: Path) -> None:
    """Checks and writes a record; an interruption leaves the old file whole."""
    validate(record, str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(draft, path)


def load(path: Path | None = None) -> dict[str, Any]:
    """Reads and checks a record; without a path, the latest in `bench/results`."""
    if path is None:
        path = latest_result()
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        raise ResultsError(f"{path}: no such file; `pytest bench/ --benchmark` writes one") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ResultsError(f"{path}: not a readable JSON file ({error})") from None
    validate(record, str(path))
    return record


def validate(record: Any, where: str) -> None:
    """Raises `ResultsError`, naming the place, unless `record` has the schema above."""
    if isinstance(record, dict) and record.get("schema") not in (None, SCHEMA):
        raise ResultsError(f"{where}: schema {record['schema']!r}; this version reads schema {SCHEMA}")
    _expect_keys(record, _TOP_KEYS, where)
    for index, row in enumerate(record["rows"]):
        _expect_keys(row, _ROW_KEYS, f"{where}: rows[{index}]")
        for column, parts in row["columns"].items():
            if column not in COLUMN_TITLES:
                raise ResultsError(f"{where}: {row['name']}: column {column!r}; expected {', '.join(COLUMN_TITLES)}")
            for what in ("forward_backward", "forward"):
                if what in parts and not _SPREAD_KEYS <= parts[what].keys():
                    raise ResultsError(f"{where}: {row['name']}, {column}, {what}: expected {sorted(_SPREAD_KEYS)}")


def _expect_keys(value: Any, keys: Mapping[str, type], where: str) -> None:
    if not isinstance(value, dict):
        raise ResultsError(f"{where}: {type(value).__name__}; expected an object with {', '.join(keys)}")
    for key, kind in keys.items():
        if key not in value:
            raise ResultsError(f"{where}: no {key!r}; expected {', '.join(keys)}")
        if not isinstance(value[key], kind):
            raise ResultsError(f"{where}: {key!r} is a {type(value[key]).__name__}; expected {kind.__name__}")


def latest_result() -> Path:
    """The record of `cplearn_loss` with the latest date; none is an error that says so."""
    found = sorted(RESULTS.glob("cplearn_loss-*.json"))
    if not found:
        raise ResultsError("bench/results holds no results; `pytest bench/ --benchmark` writes some")
    return max(found, key=lambda path: load(path)["machine"]["date"])
