"""Bounds and predictions of the cuda backend: loss and gradient under reverse KL, counted, none of it measured.

    python -m bench.cuda_bounds                          # tables for H200 and A100
    python -m bench.cuda_bounds --results DIR/gpu.json   # with measured times beside them

bench/cuda_model.py says how a pass is counted and predicted, bench/cuda_times.py what is assumed of the rest of a call.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bench.cuda_model import RESOURCES, Cost, kernels, pass_cost, product_cost
from bench.cuda_plan import plan
from bench.cuda_times import NODE, seconds, steps
from bench.gpu_rates import GPUS, Gpu
from bench.gpu_rows import BARS, ROWS

GPUS = tuple(gpu for gpu in GPUS if gpu.mma)
N, F, LOG2_C = (64, 256, 1024), (128, 384, 2048), (14, 17, 20, 22, 24)
GRAPH = ("hadamard", 64, 2048, 1 << 14)
LARGEST = ("hadamard", 64, 128, 1 << 30)


def power(c: int) -> str:
    """A power of two as text."""
    return f"2^{c.bit_length() - 1}"


def costs(gpu: Gpu, dictionary: str, n: int, f: int, c: int) -> dict[str, Cost]:
    """Clocks per logit of each pass."""
    p = plan(gpu, dictionary, n, f, c)
    found = {"best_codes": pass_cost(gpu, "best_codes", p, p.best), "column_sums": pass_cost(gpu, "column_sums", p),
             "weighted_codes": pass_cost(gpu, "weighted_codes reverse_kl", p, p.sums)}  # fmt: skip
    if p.products:
        found["sign_product, 128 terms"] = product_cost(gpu, "sign_product")
        found["add_sign_product, 128 terms"] = product_cost(gpu, "sign_product add")
    return found


def work_table(gpu: Gpu, n: int = 256, c: int = 1 << 20) -> str:
    """Markdown: per pass the clocks of a multiprocessor for 1000 logits on each unit, bound, prediction."""
    units = ("issue", "fp32", "integer", "special", "shared", "l2", "tensor")
    lines = [f"| {gpu.name}, n = {n}, c = {power(c)}: dictionary, f | pass | instructions | warps | clocks·10³: "
             + " | ".join(units) + " | bound | predicted |", "|---" * 13 + "|"]  # fmt: skip
    for dictionary, f in (("hadamard", 2048), ("hadamard", 384), ("hadamard", 128), ("rademacher", 128)):
        for name, cost in costs(gpu, dictionary, n, f, c).items():
            clocks = [f"{1000 * cost.units[unit]:.0f}" if unit in cost.units else "" for unit in units]
            row = f"{dictionary}, {f} | `{name}` | {cost.instructions:.1f} | {cost.warps}"
            lines.append(f"| {row} | {' | '.join(clocks)} | "
                         f"{1000 * cost.bound:.0f} | {1000 * cost.predicted():.0f} |")  # fmt: skip
    return "\n".join(lines)


def prediction_table(gpu: Gpu, measured: dict[tuple, float]) -> str:
    """Markdown: milliseconds at the bound, predicted, measured where there is a number; logits per second predicted."""
    lines = [f"| {gpu.name}: dictionary | n | f | " + " | ".join(f"c = 2^{log2}" for log2 in LOG2_C)
             + " | logits/s predicted, 2^14 | 2^20 | 2^24 |", "|---" * (6 + len(LOG2_C)) + "|"]  # fmt: skip
    shapes = [("hadamard", n, f) for n in N for f in F] + [("rademacher", n, f) for n in N[:2] for f in (128, 2048)]
    for dictionary, n, f in shapes:
        cells, rates = [], {}
        for log2 in LOG2_C:
            times = [*seconds(gpu, plan(gpu, dictionary, n, f, 1 << log2))]
            rates[log2] = 2 * n * (1 << log2) / times[1]
            if (key := (gpu.architecture, dictionary, n, f, 1 << log2)) in measured:
                times.append(measured[key])
            cells.append(" / ".join(f"{1e3 * value:.3g}" for value in times))
        rate = " | ".join(f"{rates[log2] / 1e12:.2g}·10¹²" for log2 in (14, 20, 24))
        lines.append(f"| {dictionary} | {n} | {f} | {' | '.join(cells)} | {rate} |")
    return "\n".join(lines)


def nodes_table(gpu: Gpu, shape: tuple[str, int, int, int]) -> str:
    """Markdown: every kernel of a call with its microseconds, and the sum with the time between nodes of a graph."""
    dictionary, n, f, c = shape
    lines = [
        f"| {gpu.name}, {dictionary}, n = {n}, f = {f}, c = {c} | nodes | bound, µs | predicted, µs |",
        "|---|---|---|---|",
    ]
    timed = steps(gpu, plan(gpu, *shape))
    for step in timed:
        lines.append(f"| `{step.kernel}` | {step.launches} | {1e6 * step.bound:.1f} | {1e6 * step.predicted:.1f} |")
    count, predicted = sum(step.launches for step in timed), sum(step.predicted for step in timed)
    between = ", ".join(f"{1e6 * (predicted + count * node):.0f}" for node in NODE)
    lines.append(f"| all; with {', '.join(f'{1e6 * node:.1f}' for node in NODE)} µs a node | {count} | "
                 f"{1e6 * sum(step.bound for step in timed):.1f} | {1e6 * predicted:.1f}; {between} |")  # fmt: skip
    return "\n".join(lines)


def bars(gpu: Gpu) -> list[tuple[str, str, float, float, bool]]:
    """(what, shape, required, predicted, met) for every bar and goal that bench.gpu has for the backend."""
    rows = {row.name: row for row in ROWS}
    found = []
    for bar in (bar for bar in BARS if bar.backend == "cuda"):
        row = rows[bar.row]
        p = plan(gpu, row.dictionary, row.n, row.num_features, row.num_codes)
        time = seconds(gpu, p)[1]
        value = {"rate": row.logits / time, "time": time, "peak": float(p.bytes)}[bar.kind]
        shape = f"{row.dictionary}, n = {row.n}, f = {row.num_features}, c = {power(row.num_codes)}"
        unit = {"rate": "logits/s", "time": "seconds", "peak": "bytes"}[bar.kind]
        unit += " in a graph" if row.task == "loss_graph" else ""
        for kind, required in (("bar", bar.value), ("goal", bar.goal)):
            if required:  # not every bar has a goal
                met = value >= required if bar.kind == "rate" else value < required
                found.append((f"{kind}, {unit}", shape, required, value, met))
    return found


def bars_table(gpu: Gpu) -> str:
    """Markdown: what is asked for and what is predicted."""
    lines = [f"| {gpu.name}, predicted only | shape | required | predicted | |", "|---|---|---|---|---|"]
    lines += [f"| {what} | {shape} | {required:.3g} | {value:.3g} | {'met' if met else '**missed**'} |"
              for what, shape, required, value, met in bars(gpu)]  # fmt: skip
    return "\n".join(lines)


def bound(architecture: str, dictionary: str, n: int, f: int, c: int) -> dict[str, float] | None:
    """What `bench.gpu` puts beside a measurement of the backend: logits per second at the bound, tensor operations per
    logit where there are any (three or four products of data as two half floats)."""
    gpu = next((gpu for gpu in GPUS if gpu.architecture == architecture), None)
    if gpu is None or not kernels():
        return None
    p = plan(gpu, dictionary, n, f, c)
    fastest, predicted = seconds(gpu, p)
    found = {"logits_per_second": 2 * n * c / fastest, "predicted_logits_per_second": 2 * n * c / predicted}
    return {**found, "tensor_flops": p.products * 2 * 2 * p.width} if p.products else found


def measured_times(path: Path) -> dict[tuple, float]:
    """(arch, dictionary, n, f, c) -> median seconds of the cuda backend, from the record of `bench.gpu`."""
    record = json.loads(path.read_text())
    arch = record["machine"].get("architecture")
    found = {}
    for row in record.get("rows", []):
        cell = row["cells"].get("library:cuda", {})
        if row["task"] == "loss" and "median" in cell:
            found[arch, row["dictionary"], row["n"], row["num_features"], row["num_codes"]] = cell["median"]
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.cuda_bounds", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--gpu", action="append", choices=[gpu.name for gpu in GPUS], help="default: all")
    parser.add_argument("--results", type=Path, help="a record of bench.gpu, for a third number where it was measured")
    chosen = parser.parse_args(arguments)
    if not kernels():
        print(f"{RESOURCES.name} is missing: run python -m bench.cuda_resources", file=sys.stderr)
        return 2
    measured = measured_times(chosen.results) if chosen.results else {}
    print(
        "Predictions, counted and assumed; milliseconds are bound / predicted" + " / measured" * bool(measured),
        end="\n\n",
    )
    for gpu in GPUS:
        if chosen.gpu is None or gpu.name in chosen.gpu:
            print(work_table(gpu), prediction_table(gpu, measured), nodes_table(gpu, GRAPH), nodes_table(gpu, LARGEST),
                  bars_table(gpu), sep="\n\n", end="\n\n")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
