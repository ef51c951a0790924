"""The record of a GPU run: a line of JSON per outcome, written at once, so that an end of any kind loses none.

Every line is an object with `step`, a name, and `group` ("machine", "tests", "rows", "sanitizer", "tune"). A step may
have several lines, each complete: the last one counts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = "steps.jsonl"


def append(path: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """Adds a line and returns the entry. A line that a crash has torn before it stays by itself."""
    with path.open("a") as file:
        file.write(f"\n{json.dumps(entry)}\n")
    return entry


def read(path: Path) -> list[dict[str, Any]]:
    """The last entry of every step, in the order in which the steps came first."""
    steps: dict[tuple[str, str], dict[str, Any]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
            steps[entry["group"], entry["step"]] = entry
        except (ValueError, KeyError, TypeError):
            continue  # empty or torn
    return list(steps.values())
