"""Measures what one core does, by the small C++ programs of csrc/bench, built with all that this processor has.

    python -m bench.micro vector_rates     # additions, multiply-adds, loads, stores: the bounds in docs/performance.md
    python -m bench.micro sign_products    # ways to multiply rows by ±1 codes: the choice that csrc/cpu makes

To the latter belong torch's matrix products on panels of codes: float32, and two bfloat16 products (the high and the
low half of the rows, which is what float32 accuracy takes). A rate counts one product per row, coordinate and code,
whatever the method does instead. Writes JSON, {"benchmark", "machine", "entries": what the program prints}, and prints
a table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.results import report
from bench.timing import alternate
from train.machine import describe

SOURCES = Path(__file__).resolve().parents[2] / "csrc" / "bench"
Entry = Mapping[str, Any]


def run_program(source: Path, compiler: str) -> list[Entry]:
    """The objects that a C++17 program prints, one per line; `compiler` is the name or path of GCC or Clang."""
    if shutil.which(compiler) is None:
        raise RuntimeError(f"no compiler {compiler!r}; --compiler names another")
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / source.stem)
        command = [compiler, "-std=c++17", "-O3", "-march=native", "-fno-math-errno", str(source), "-o", program]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if built.returncode != 0:
            raise RuntimeError(f"{compiler} failed on {source.name}: {built.stderr.strip()[:500]}")
        lines = subprocess.run([program], check=True, capture_output=True, text=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


def torch_products(codes: int = 512, rows: int = 128) -> list[Entry]:
    """torch's matrix products of some rows with a panel of codes, on one thread."""
    torch.set_num_threads(1)
    found = []
    for f in (128, 2048):
        h, panel = torch.randn(rows, f), torch.randint(0, 2, (f, codes)) * 2.0 - 1
        halves, panel_half = (h.bfloat16(), (h - h.bfloat16().float()).bfloat16()), panel.bfloat16()
        methods = {
            "torch.mm, float32 panel": lambda h=h, panel=panel: h @ panel,
            "torch.mm, two bfloat16 halves": lambda halves=halves, panel=panel_half: [half @ panel for half in halves],
        }
        for name, seconds in alternate(methods, rounds=7, turn_seconds=0.05).items():
            rate = rows * f * codes / min(seconds)
            found.append({"method": name, "direction": "forward", "num_features": f, "products_per_second": rate})
    return found


def table(entries: Sequence[Entry]) -> list[dict[str, str]]:
    """10^9 per second and core: a row per method or operation, a column per direction and f, or for vectors."""
    columns: dict[str, str] = {}
    rows: dict[str, dict[str, str]] = {}
    for entry in entries:
        if "method" in entry:
            name, column = entry["method"], f"10^9 products, {entry['direction']}, f={entry['num_features']}"
            rate = entry["products_per_second"]
        else:
            name, column = entry["operation"], f"10^9 vectors of {entry['lanes']} floats"
            rate = entry["vectors_per_second"]
        columns[column] = "-"
        rows.setdefault(name, {})[column] = f"{rate / 1e9:.1f}"
    return [{"": name, **columns, **row} for name, row in rows.items()]


def main(arguments: list[str] | None = None) -> int:
    """Measures, writes and prints."""
    parser = argparse.ArgumentParser(prog="python -m bench.micro", description=__doc__.splitlines()[0])
    parser.add_argument("benchmark", choices=["vector_rates", "sign_products"])
    parser.add_argument("--compiler", default="c++", help="C++ compiler, GCC or Clang (default: c++)")
    parser.add_argument("--json", type=Path, default=Path(), help="results file (default: in bench/results)")
    given = parser.parse_args(arguments)
    machine = describe(threads=1)  # while the machine is still idle
    try:
        entries = run_program(SOURCES / f"{given.benchmark}.cpp", given.compiler)
    except RuntimeError as error:
        print(f"bench.micro: {error}", file=sys.stderr)
        return 1
    if given.benchmark == "sign_products":
        entries += torch_products()
    record = {"benchmark": given.benchmark, "machine": machine, "entries": entries}
    return report(record, [table(entries)], given.json)


if __name__ == "__main__":
    sys.exit(main())
