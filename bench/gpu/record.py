"""The JSON of the GPU benchmark, written after every row so that an interruption loses nothing.

    {"schema": 2, "benchmark": "gpu", "machine": {...}, "settings": {...},
     "tests": what `bench.gpu_tests.summary` returns, or None, "sanitizer": `bench.gpu_sanitizer.summary`'s, or None,
     "rows": [{"name", "task", "dictionary", "n", "num_features", "num_codes", "logits", "columns": [names],
               "agreement": {column: what `gpu_columns.check` returns}, "wrong": [sentences],
               "cells": {column: cell}}],
     "bars": what `bench.gpu_bars.judge` returns}

A cell has `seconds` (one number per round), their `bench.timing.spread`, `logits_per_second`, `peak_bytes` (of a call,
without inputs and weight; None where nothing counts it), `weight_bytes` and, for the library, `bound_share` (of the
backend's own bound; None unless that is "cuda" or "triton"); for the others `ratios`, {library column: how many times as
long, round by round}. Or it has `error`, or `skipped`: the reason.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Mapping

from bench.gpu_rows import GpuRow

SCHEMA = 2
FILE, TESTS_FILE, PROGRESS_FILE, LOG_FILE = "gpu.json", "tests.json", "progress.json", "worker.log"
LOST = 70  # a worker's exit status: the device no longer answers it, its cells say so, a new one has to go on


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replaces a file in one step: a reader, or a crash, sees the old content or the new."""
    draft = path.with_name(path.name + ".part")
    draft.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(draft, path)


def read_json(path: Path) -> dict[str, Any] | None:
    """The content of a file, None where there is none."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


class Record:
    """The record in a folder; whoever opens it again continues it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        empty = {"schema": SCHEMA, "benchmark": "gpu", "machine": {}, "settings": {}, "tests": None, "sanitizer": None,
                 "rows": [], "bars": []}
        self.content: dict[str, Any] = read_json(self.path) or empty
        self._rows = {row["name"]: row for row in self.content["rows"]}

    def save(self) -> None:
        """Writes the file."""
        write_json(self.path, self.content)

    def declare(self, row: GpuRow, columns: list[str]) -> None:
        """Notes that these columns belong to the row, so that each of them ends up with a cell."""
        if row.name not in self._rows:
            entry = {"name": row.name, "task": row.task, "dictionary": row.dictionary, "n": row.n,
                     "num_features": row.num_features, "num_codes": row.num_codes, "logits": row.logits,
                     "columns": [], "agreement": {}, "wrong": [], "cells": {}}
            self.content["rows"].append(entry)
            self._rows[row.name] = entry
        known = self._rows[row.name]["columns"]
        known.extend(column for column in columns if column not in known)

    def row(self, name: str) -> dict[str, Any]:
        """The entry of a declared row."""
        return self._rows[name]

    def fill(self, reason: str) -> None:
        """Gives every column that has no cell yet a skipped one."""
        for row in self.content["rows"]:
            for column in row["columns"]:
                row["cells"].setdefault(column, {"skipped": reason})

    def blame(self, name: str, columns: list[str], reason: str) -> None:
        """Notes an error in the cells of a row that a process was busy with when it came to its end.

        Where those had been measured before, and only took their turns again, the row's other columns get it: whoever
        goes on must not come to the same place.
        """
        row = self._rows[name]
        missing = [column for column in row["columns"] if column not in row["cells"]]
        for column in [column for column in columns if column in missing] or missing:
            row["cells"][column] = {"error": reason}
