"""Times ways to multiply rows by ±1 codes, for the choice that csrc/cpu/codes/sign_blocks.h makes; writes JSON, prints a table.

Compiles csrc/bench/sign_products.cpp for this processor and runs it, then times torch's matrix products on panels of
codes: float32, and two bfloat16 products (the high and the low half of the rows, which is what float32 accuracy takes).
One thread throughout; a rate counts one product per row, coordinate and code, whatever the method does instead.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from bench.micro.compiled import SOURCES, json_lines, report

SOURCE = SOURCES / "sign_products.cpp"
_CODES, _ROWS = 512, 128


def torch_methods() -> list[dict[str, Any]]:
    """Matrix products of 128 rows with a panel of 512 codes."""
    import torch

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
            found.append({"method": name, "direction": "forward", "num_features": f, "lanes": None,
                          "products_per_second": _ROWS * f * _CODES / seconds})
    return found


def _seconds(call) -> float:
    call()
    began = time.perf_counter()
    for _ in range(10):
        call()
    return (time.perf_counter() - began) / 10


def table(record: dict[str, Any]) -> str:
    """Markdown: one line per method, 10^9 products per second on one core for each direction and f."""
    columns = [(direction, f) for direction in ("forward", "backward") for f in (128, 2048)]
    rates = {(m["method"], m["direction"], m["num_features"]): m["products_per_second"] for m in record["methods"]}
    lines = ["| method | " + " | ".join(f"{direction}, f={f}" for direction, f in columns) + " |", "|---" * 5 + "|"]
    for name in dict.fromkeys(m["method"] for m in record["methods"]):
        cells = (rates.get((name, *column)) for column in columns)
        lines.append(f"| {name} | " + " | ".join("-" if cell is None else f"{cell / 1e9:.1f}" for cell in cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measures, writes and prints."""
    parser = argparse.ArgumentParser(prog="python -m bench.micro.sign_products", description=__doc__.splitlines()[0])
    parser.add_argument("--compiler", default="c++", help="C++ compiler, GCC or Clang (default: c++)")
    parser.add_argument("--json", type=Path, default=None, help="results file (default: in bench/results)")
    parser.add_argument("--show", type=Path, default=None, metavar="FILE", help="print the table of a results file only")
    given = parser.parse_args(arguments)
    if given.show is not None:
        print(table(json.loads(given.show.read_text())))
        return 0
    return report("sign_products", "methods", lambda: json_lines(SOURCE, given.compiler) + torch_methods(), table, given.json)


if __name__ == "__main__":
    sys.exit(main())
