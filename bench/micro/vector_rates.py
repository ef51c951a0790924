"""Measures the vector additions, multiply-adds, loads and stores of one core: what the bounds of docs/performance.md
start from. Writes JSON, prints a table.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from bench.micro.compiled import SOURCES, json_lines, report

SOURCE = SOURCES / "vector_rates.cpp"


def rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per operation, 10^9 vectors per second on one core."""
    return [
        {
            f"operation on {entry['lanes']} floats": entry["operation"],
            "10^9 per second and core": entry["vectors_per_second"] / 1e9,
        }
        for entry in record["operations"]
    ]


def main(arguments: list[str] | None = None) -> int:
    """Measures, writes and prints."""
    parser = argparse.ArgumentParser(prog="python -m bench.micro.vector_rates", description=" ".join(__doc__.split()))
    parser.add_argument("--compiler", default="c++", help="C++ compiler, GCC or Clang (default: c++)")
    parser.add_argument("--json", type=Path, default=None, help="results file (default: in bench/results)")
    given = parser.parse_args(arguments)
    return report("vector_rates", "operations", lambda: json_lines(SOURCE, given.compiler), rows, given.json)


if __name__ == "__main__":
    sys.exit(main())
