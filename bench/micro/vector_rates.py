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


def table(record: dict[str, Any]) -> str:
    """Markdown: one line per operation, 10^9 vectors per second on one core."""
    lanes = record["operations"][0]["lanes"]
    lines = [f"| operation on {lanes} floats | 10^9 per second and core |", "|---|---|"]
    lines += [f"| {entry['operation']} | {entry['vectors_per_second'] / 1e9:.1f} |" for entry in record["operations"]]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measures, writes and prints."""
    parser = argparse.ArgumentParser(prog="python -m bench.micro.vector_rates", description=" ".join(__doc__.split()))
    parser.add_argument("--compiler", default="c++", help="C++ compiler, GCC or Clang (default: c++)")
    parser.add_argument("--json", type=Path, default=None, help="results file (default: in bench/results)")
    given = parser.parse_args(arguments)
    return report("vector_rates", "operations", lambda: json_lines(SOURCE, given.compiler), table, given.json)


if __name__ == "__main__":
    sys.exit(main())
