"""Measures the vector additions, multiply-adds, loads and stores of one core: what the bounds of docs/performance.md
start from. Writes JSON, prints a table.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bench.compiled import SOURCES, CompilerError, json_lines
from bench.machine import describe, slug
from bench.results import RESULTS

SOURCE = SOURCES / "vector_rates.cpp"


def table(record: dict[str, Any]) -> str:
    """Markdown: one line per operation, 10^9 vectors per second on one core."""
    lanes = record["operations"][0]["lanes"]
    lines = [f"| operation on {lanes} floats | 10^9 per second and core |", "|---|---|"]
    lines += [f"| {entry['operation']} | {entry['vectors_per_second'] / 1e9:.1f} |" for entry in record["operations"]]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measures, writes and prints."""
    parser = argparse.ArgumentParser(prog="python -m bench.vector_rates", description=" ".join(__doc__.split()))
    parser.add_argument("--compiler", default="c++", help="C++ compiler, GCC or Clang (default: c++)")
    parser.add_argument("--json", type=Path, default=None, help="results file (default: in bench/results)")
    given = parser.parse_args(arguments)
    machine = describe(threads=1)
    try:
        record = {"schema": 1, "benchmark": "vector_rates", "machine": machine,
                  "operations": json_lines(SOURCE, given.compiler)}
    except CompilerError as error:
        print(f"bench.vector_rates: {error}", file=sys.stderr)
        return 1
    path = given.json or RESULTS / f"vector_rates-{slug(machine['cpu'])}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record))
    print(f"written: {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
