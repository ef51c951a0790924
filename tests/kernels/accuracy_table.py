"""Prints the table of docs/support.md from what `pytest tests/kernels --conformance-json FILE` wrote.

python tests/kernels/accuracy_table.py bench/results/conformance.json
"""

from __future__ import annotations

import json
import sys

from tabulate import tabulate

BACKENDS = ("cpu", "torch", "cuda", "triton")
REGIMES = {"logits <= 60": "logits up to 60", "logits > 60": "logits up to 300", "f <= 16": "f <= 16"}
KINDS = {
    "the loss": lambda record: ("value",) if record["function"] == "cplearn_loss" else (),
    "other functions' values": lambda record: () if record["function"] == "cplearn_loss" else ("value",),
    "gradients": lambda record: ("gradient",),
}


def table(records: list[dict]) -> str:
    """Worst errors over functions, dtypes and instruction sets: a kind of error a row, a backend a column."""
    rows = []
    for name, parts in KINDS.items():
        for regime, text in REGIMES.items():
            worst, tolerances = {}, set()
            for record in (record for record in records if record["regime"].startswith(regime)):
                for part in parts(record):
                    backend = record["backend"].partition("/")[0]
                    worst[backend] = max(worst.get(backend, 0.0), record[f"{part}_error"])
                    tolerances.add(record[f"{part}_tolerance"])
            errors = (f"{worst[backend]:.1e}" if backend in worst else "" for backend in BACKENDS)
            rows.append([f"{name}, {text}", ", ".join(f"{number:.0e}" for number in sorted(tolerances)), *errors])
    headers = ["worst error of", "tolerance", *(f"`{backend}`" for backend in BACKENDS)]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        print(table(json.load(file)))
