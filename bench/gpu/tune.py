"""The autotuner of the Triton backend: times configurations on a GPU and writes the fastest into the package's table.

    python -m bench.gpu.tune --table /tmp/tuning.json --kernel best_codes --form codes-128

A configuration is judged by a whole call in which its kernel runs. The table is written after every kernel and form, so
that whoever ends it keeps what was found; it says how entries came about: those that were "counted" had the fewest
instructions per logit in machine code, before any GPU was at hand.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bench.cases import Case
from bench.gpu.measure import clock_of
from bench.gpu.triton_resources import FORMS, is_used
from bench.implementations import Problem, build
from bench.timing import alternate, spread
from cplearn_kernels.backends.triton import tuning
from cplearn_kernels.backends.triton.tuning import KERNELS, TABLE, Configuration
from train import files

_TWO_VIEWS = ("row_sums", "weighted_codes", "chunk_weights")
_GROUPED = ("chunk_weights", "weighted_chunk")


def has_kernel(kernel: str, form: str, arch: str) -> bool:
    """Whether a kernel runs for a form on an architecture."""
    grouped = form == "codes-grouped"
    if kernel in _GROUPED:
        return grouped
    return is_used(form, arch) and not (grouped and kernel.startswith("weighted_codes"))


def candidates(kernel: str, form: str, arch: str) -> Iterator[Configuration]:
    """The configurations to try: 16 to 64 logits of a tile per lane of a warp of 32, 4 or 8 such warps."""
    lanes = 64 if arch.startswith("gfx") else 32
    views = 2 if kernel in _TWO_VIEWS else 1
    if form.startswith("kronecker"):
        shapes = itertools.product((1, 2, 4, 8, 16, 32, 64), (int(form.split("-")[1]),))
    else:
        shapes = itertools.product((16, 32, 64, 128), (128,) if kernel in _GROUPED else (64, 128))
    for (rows, codes), warps in itertools.product(shapes, (4, 8)):
        if 16 <= views * rows * codes // (warps * 32) <= 64:
            yield Configuration(rows, codes, warps * 32 // lanes)


def call_of(kernel: str, form: str, device: torch.device, n: int = 256, log2_codes: int = 20) -> Callable[[], Any]:
    """A call of the library in which a kernel runs."""
    name, _, size = form.partition("-")
    few = kernel in ("weighted_codes_given", "probabilities")  # their calls keep all logits
    case = Case(
        n, 1024 if size == "grouped" else int(size), 1 << log2_codes - 4 * few,
        function="projector_softmax" if few else "expected_code" if kernel == "weighted_codes_one" else "cplearn_loss",
        dictionary="hadamard" if name == "kronecker" else "rademacher",
    )  # fmt: skip
    return build("triton", Problem(case, device))


def fastest(
    call: Callable[[], Any], kernel: str, form: str, arch: str, rounds: int, clock
) -> tuple[float, Configuration]:
    """(seconds, configuration) of the candidate with which the call is fastest; infinite where none runs."""
    timed = []
    for config in candidates(kernel, form, arch):
        try:
            with tuning.override(kernel, form, config):
                seconds = alternate({"": call}, rounds, turn_seconds=0.0, clock=clock)[""]
            timed.append((spread(seconds)["median"], config))
        except Exception as error:
            print(f"  {kernel} {form} {config}: {str(error).splitlines()[0][:100]}", flush=True)
    return min(timed, key=lambda entry: entry[0], default=(float("inf"), Configuration(0, 0, 0)))


def write(path: Path, arch: str, kernel: str, form: str, config: Configuration) -> None:
    """Puts a measured entry into a table, keeping all others; a table that is not there begins as the package's."""
    table = json.loads((path if path.exists() else TABLE).read_text())
    entry = table["architectures"].setdefault(arch, {})
    entry.setdefault("how", {})[f"{kernel} {form}"] = "measured"
    entry.setdefault(kernel, {})[form] = asdict(config)
    files.write_text(path, json.dumps(table, indent=1, sort_keys=True) + "\n")


def main(arguments: list[str] | None = None) -> int:
    """The command; 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.tune", description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", action="append", choices=KERNELS, help="default: all")
    parser.add_argument("--form", action="append", choices=FORMS, help="default: all")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls per candidate (default: %(default)s)")
    parser.add_argument("--table", type=Path, default=TABLE, help="where to write (default: the package's table)")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("bench.gpu.tune: no GPU that PyTorch can use", file=sys.stderr)
        return 2
    device = torch.device("cuda")
    arch, clock = tuning.architecture(device), clock_of(device)
    for kernel, form in itertools.product(given.kernel or KERNELS, given.form or FORMS):
        if has_kernel(kernel, form, arch):
            seconds, config = fastest(call_of(kernel, form, device), kernel, form, arch, given.rounds, clock)
            print(f"{arch} {kernel} {form}: {config}, {seconds:.3g} s", flush=True)
            if seconds < float("inf"):
                write(given.table, arch, kernel, form, config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
