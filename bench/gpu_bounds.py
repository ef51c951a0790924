"""What the Triton kernels must do per logit, on each unit of a GPU, and the times that follow: bounds and predictions.

    python -m bench.gpu_bounds                        # tables for H200, A100 and MI300X
    python -m bench.gpu_bounds --results DIR/gpu.json # with measured times beside them

Counted by hand: tensor-core multiply-adds, exponentials, bytes through shared memory of each pass. Counted by the
compiler: instructions per logit (bench/results/triton_resources.json). Rates: vendors' data sheets.

The bound of a pass is the time of its busiest unit; passes run one after the other. The prediction adds the tensor
cores' time to the larger of the others': a thread block waits for its own products, and few blocks fit at a time.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.gpu_rates import GPUS, Gpu

RESOURCES = Path(__file__).resolve().parent / "results" / "triton_resources.json"


# Codes whose column sums are held at a time (pieces.SPAN): beyond, they are made twice.
SPAN = 1 << 22
PREDICTED_N = (64, 256, 1024)
PREDICTED_F = (128, 384, 2048)
PREDICTED_LOG2_C = (14, 17, 20, 22, 24)


@dataclass(frozen=True)
class Pass:
    """One pass over all logits: counts per logit."""

    kernel: str
    tensor: float
    exponentials: float
    shared: float


def form_of(dictionary: str, f: int) -> tuple[str, int]:
    """(the key of the configurations, groups of 128 coordinates) for a dictionary of up to 2048 features."""
    block = 1 << (f - 1).bit_length()
    if dictionary == "hadamard" and 256 <= block <= 2048:
        return f"kronecker-{block}", 1
    if f <= 128:
        return f"codes-{max(32, block)}", 1
    return "codes-grouped", -(-f // 128)


def passes(dictionary: str, f: int) -> list[Pass]:
    """The passes of loss and gradient (reverse KL), with what each logit costs them.

    A product of data with ±1 is two multiply-adds per term, one per float16 half. Kronecker: A + B terms per transform;
    the halves go once through shared memory between the two products (4 bytes in, 4 out) and in as operands (4, 4).
    Codes: f terms; a tile of ±1 and the rows pass through shared memory once per product, about 4 bytes per logit.
    """
    form, groups = form_of(dictionary, f)
    if form.startswith("kronecker"):
        log2_block = int(form.split("-")[1]).bit_length() - 1
        terms = (1 << (log2_block // 2)) + (1 << (log2_block - log2_block // 2))
        shared = 16.0
    else:
        terms, shared = (int(form.split("-")[1]) if groups == 1 else 128 * groups), 8.0 * groups
    once = 2.0 * terms
    forward = [
        Pass("best_codes", once, 1, shared),
        Pass("column_sums", once, 1, shared),
        Pass("row_sums", once, 1, shared),
    ]
    if groups > 1:
        return [*forward, Pass("chunk_weights", once, 1, shared), Pass("weighted_chunk", once, 0, shared)]
    return [*forward, Pass("weighted_codes", 2 * once, 1, 2 * shared)]


@functools.lru_cache(maxsize=1)
def _instructions() -> dict[tuple[str, str, str], float]:
    """(arch, kernel, form) -> thread instructions per logit of the mode that reverse KL runs, from the compiler."""
    if not RESOURCES.exists():
        return {}
    found = {}
    for record in json.loads(RESOURCES.read_text())["variants"]:
        options = record["options"]
        if "error" in record or not options.get("PAIR", True) or options.get("LOGS") or options.get("MODE", 2) != 2:
            continue
        lanes = 64 if record["arch"].startswith("gfx") else 32
        views = 2 if record["kernel"] in ("row_sums", "weighted_codes", "chunk_weights") else 1
        groups = 16 if record["form"] == "codes-grouped" else 1
        # The inner loop of a grouped product runs once per group; GROUPS is 16 where the report compiles.
        count = (record["loop"] or record["instructions"]) + record["inner_loop"] * (groups - 1)
        if record["kernel"] == "weighted_chunk":
            count *= groups
        if record["kernel"] == "chunk_weights":  # its only loop is that over the groups
            count = record["instructions"] + record["loop"] * (groups - 1)
        per_logit = count * record["warps"] * lanes / (views * record["rows"] * record["codes"])
        found[record["arch"], record["kernel"], record["form"]] = per_logit
    return found


def times(gpu: Gpu, dictionary: str, f: int) -> list[tuple[Pass, float, dict[str, float]]]:
    """(pass, instructions per logit, clocks per logit and multiprocessor on each unit) for every pass."""
    form, groups = form_of(dictionary, f)
    rows = []
    for step in passes(dictionary, f):
        instructions = _instructions().get((gpu.architecture, step.kernel, form), 0.0)
        if form == "codes-grouped":
            instructions *= groups / 16
        rows.append((step, instructions, {
            "tensor": step.tensor / gpu.tensor, "exponential": step.exponentials / gpu.exponentials,
            "shared": step.shared / gpu.shared, "issue": instructions / gpu.issue,
        }))  # fmt: skip
    return rows


def seconds(gpu: Gpu, dictionary: str, n: int, f: int, c: int) -> tuple[float, float]:
    """(bound, prediction) of loss and gradient, without the microseconds of launches."""
    bound = prediction = 0.0
    for step, _, units in times(gpu, dictionary, f):
        repeat = 2 if step.kernel == "column_sums" and c > SPAN else 1
        bound += repeat * max(units.values())
        prediction += repeat * (units["tensor"] + max(units["exponential"], units["shared"], units["issue"]))
    scale = 2 * n * c / (gpu.processors * gpu.clock)
    return bound * scale, prediction * scale


def bound(architecture: str, dictionary: str, n: int, f: int, c: int) -> dict[str, float] | None:
    """What `bench.gpu` puts beside a measurement: logits per second at the bound, tensor operations per logit."""
    gpu = next((gpu for gpu in GPUS if gpu.architecture == architecture), None)
    if gpu is None:
        return None
    fastest, predicted = seconds(gpu, dictionary, n, f, c)
    flops = 2 * sum(step.tensor for step in passes(dictionary, f))
    return {"logits_per_second": 2 * n * c / fastest, "predicted_logits_per_second": 2 * n * c / predicted,
            "tensor_flops": flops}  # fmt: skip


def work_table(gpu: Gpu) -> str:
    """Markdown: per pass what a logit costs each unit, in clocks of a multiprocessor times 1000."""
    lines = [f"| {gpu.name}: dictionary, f | pass | tensor multiply-adds | exponentials | shared memory, bytes | instructions | "
             "clocks·10³: tensor | exponential | shared | issue |", "|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for dictionary, f in (("hadamard", 2048), ("hadamard", 384), ("hadamard", 128), ("rademacher", 2048)):
        for step, instructions, units in times(gpu, dictionary, f):
            clocks = " | ".join(f"{1000 * value:.0f}" for value in units.values())
            lines.append(f"| {dictionary}, {f} | `{step.kernel}` | {step.tensor:.0f} | {step.exponentials} | "
                         f"{step.shared:.0f} | {instructions:.0f} | {clocks} |")  # fmt: skip
    return "\n".join(lines)


def prediction_table(gpu: Gpu, measured: dict[tuple, float]) -> str:
    """Markdown: milliseconds at the bound, predicted and, where there are any, measured, for the table's sizes."""
    lines = [f"| {gpu.name}: dictionary | n | f | " + " | ".join(f"c = 2^{log2}" for log2 in PREDICTED_LOG2_C) +
             " | logits/s predicted | measured |", "|---" * (5 + len(PREDICTED_LOG2_C)) + "|"]  # fmt: skip
    shapes = [("hadamard", n, f, PREDICTED_LOG2_C) for n in PREDICTED_N for f in PREDICTED_F]
    shapes += [("rademacher", n, f, PREDICTED_LOG2_C[:3]) for n in PREDICTED_N[:2] for f in (128, 2048)]
    for dictionary, n, f, sizes in shapes:
        cells, any_measured = [], False
        for log2 in sizes:
            time = measured.get((gpu.architecture, dictionary, n, f, 1 << log2))
            known = [*seconds(gpu, dictionary, n, f, 1 << log2)] + ([] if time is None else [time])
            any_measured |= time is not None
            cells.append(" / ".join(f"{1e3 * value:.3g}" for value in known))
        cells += [""] * (len(PREDICTED_LOG2_C) - len(sizes))
        rate = 2 * n * (1 << 20) / seconds(gpu, dictionary, n, f, 1 << 20)[1]
        lines.append(f"| {dictionary} | {n} | {f} | {' | '.join(cells)} | {rate:.2g} | "
                     f"{'third number' if any_measured else 'not measured'} |")  # fmt: skip
    return "\n".join(lines)


def _measured(path: Path) -> dict[tuple, float]:
    """(arch, dictionary, n, f, c) -> median seconds of the library, from the record of `bench.gpu`."""
    record = json.loads(path.read_text())
    arch = record["machine"].get("architecture")
    found = {}
    for row in record.get("rows", []):
        cell = row["cells"].get("library:triton", {})
        if row["task"] == "loss" and "median" in cell:
            found[arch, row["dictionary"], row["n"], row["num_features"], row["num_codes"]] = cell["median"]
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_bounds", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--gpu", action="append", choices=[gpu.name for gpu in GPUS], help="default: all")
    parser.add_argument("--results", type=Path, help="a record of bench.gpu, for the measured column")
    chosen = parser.parse_args(arguments)
    if not _instructions():
        print(f"{RESOURCES.name} is missing: run python -m bench.triton_resources", file=sys.stderr)
        return 2
    measured = _measured(chosen.results) if chosen.results else {}
    for gpu in GPUS:
        if chosen.gpu is None or gpu.name in chosen.gpu:
            print(work_table(gpu), prediction_table(gpu, measured), sep="\n\n", end="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
