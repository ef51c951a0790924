"""Times ways to multiply rows by ±1 codes, for the choice that csrc/cpu/sign_blocks.h makes; writes JSON, prints a table.

Compiles csrc/bench/sign_products.cpp for this processor and runs it, then times torch's matrix products on panels of
codes: float32, and two bfloat16 products (the high and the low half of the rows, which is what float32 accuracy takes).
One thread throughout; a rate counts one product per row, coordinate and code, whatever the method does instead.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bench.micro.compiled import SOURCES, json_lines, report

SOURCE = SOURCES / "sign_products.cpp"
_CODES, _ROWS = 512, 128


def torch_methods() -> list[dict[str, Any]]:
    """Matrix products of 128 rows with a panel of 512 codes."""
    torch.set_num_threads(1)
    found = []
    for f in (128, 2048):
        rows = torch.randn(_ROWS, f)
        panel = torch.randint(0, 2, (f, _CODES)) * 2.0 - 1
        high = rows.bfloat16()
        halves, panel_half = (high, (rows - high.float()).bfloat16()), panel.bfloat16()
        methods = {
            "torch.mm, float32 panel": lambda rows=rows, panel=panel: rows @ panel,
            "torch.mm, two bfloat16 halves": lambda halves=halves, panel=panel_half: [h @ panel for h in halves],
        }
        for name, call in methods.items():
            seconds = min(_seconds(call) for _ in range(7))
            found.append(
                {
                    "method": name,
                    "direction": "forward",
                    "num_features": f,
                    "lanes": None,
                    "products_per_second": _ROWS * f * _CODES / seconds,
                }
            )
    return found


def _seconds(call) -> float:
    call()
    began = time.perf_counter()
    for _ in range(10):
        call()
    return (time.perf_counter() - began) / 10


def rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per method, 10^9 products per second on one core for each direction and f."""
    found: dict[str, dict[str, Any]] = {}
    for entry in record["methods"]:
        column = f"{entry['direction']}, f={entry['num_features']}"
        found.setdefault(entry["method"], {"method": entry["method"]})[column] = entry["products_per_second"] / 1e9
    return list(found.values())


def main(arguments: list[str] | None = None) -> int:
    """Measures, writes and prints."""
    parser = argparse.ArgumentParser(prog="python -m bench.micro.sign_products", description=__doc__.splitlines()[0])
    parser.add_argument("--compiler", default="c++", help="C++ compiler, GCC or Clang (default: c++)")
    parser.add_argument("--json", type=Path, default=None, help="results file (default: in bench/results)")
    given = parser.parse_args(arguments)
    return report(
        "sign_products", "methods", lambda: json_lines(SOURCE, given.compiler) + torch_methods(), rows, given.json
    )


if __name__ == "__main__":
    sys.exit(main())
