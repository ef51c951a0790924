"""The autotuner of the Triton backend: times configurations on a GPU and writes the fastest into the package's table.

    python -m bench.gpu.tune                             # every kernel and form, for this GPU's architecture
    python -m bench.gpu.tune --kernel best_codes --form codes-128 --table /tmp/tuning.json

The table is written after every form of a kernel, so that whoever ends it keeps what was found. It notes how each entry
came about; those that were "counted" had the fewest instructions per logit in machine code, before any GPU was at hand.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from bench.gpu.measure import clock_of
from bench.gpu.triton_resources import FORMS, is_used
from bench.timing import alternate, spread
from cplearn_kernels.backends.triton import tuning
from cplearn_kernels.backends.triton.tuning import KERNELS, TABLE, Configuration

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
        block = int(form.split("-")[1])
        shapes = [(rows, block) for rows in (1, 2, 4, 8, 16, 32, 64)]
    else:
        shapes = list(itertools.product((16, 32, 64, 128), (128,) if kernel in _GROUPED else (64, 128)))
    for (rows, codes), warps in itertools.product(shapes, (4, 8)):
        if 16 <= views * rows * codes // (warps * 32) <= 64:
            yield Configuration(rows, codes, warps * 32 // lanes)


def fastest(kernel: str, form: str, arch: str, rounds: int) -> tuple[Configuration, float] | None:
    """(the fastest candidate, its seconds): one pass, timed by events on random rows; None where none runs."""
    run, clock = _pass(kernel, form), clock_of(torch.device("cuda"))
    timed = []
    for config in candidates(kernel, form, arch):
        try:
            with tuning.override(kernel, form, config):
                timed.append(
                    (spread(alternate({"": run}, rounds, turn_seconds=0.0, clock=clock)[""])["median"], config)
                )
        except Exception as error:  # noqa: BLE001  a candidate that does not fit is no reason to stop
            print(f"  {kernel} {form} {config}: {str(error).splitlines()[0][:100]}", flush=True)
    return min(timed, key=lambda entry: entry[0])[::-1] if timed else None


def _pass(kernel: str, form: str) -> Callable[[], Any]:
    """A function that runs one pass at n = 256."""
    import cplearn_kernels as cpk
    from cplearn_kernels.backends.triton import batch as triton_batch
    from cplearn_kernels.backends.triton.codes import codes_of
    from cplearn_kernels.backends.triton.kernels.constants import GIVEN, REVERSE_KL, SECOND
    from cplearn_kernels.backends.triton.sums import weighted_codes

    kronecker = form.startswith("kronecker")
    f = 1024 if form == "codes-grouped" else int(form.split("-")[1])
    n, c = 256, 1 << (21 if kronecker and f < 4096 else 20)
    dictionary = (cpk.HadamardDictionary if kronecker else cpk.RademacherDictionary)(f, c)
    views = [torch.nn.functional.normalize(torch.randn(n, f, device="cuda")) for _ in range(2)]
    factor = triton_batch.LOG2_E / cpk.default_temperature(f, c)
    batch = triton_batch.Batch(views, codes_of(dictionary, views[0].device), [factor, factor])
    batch.find_best()
    state = batch.empty_state()
    slopes, _ = batch.columns(0, c, REVERSE_KL)
    batch.row_sums(state, 0, c, slopes, REVERSE_KL)
    batch.add_agreement(state)
    batch.finish_row_sums(state, 1.0)
    few = triton_batch.Batch(views[:1], codes_of(type(dictionary)(f, 1 << 16), views[0].device), [factor])
    out, given = torch.empty(n, 1 << 16, device="cuda"), torch.rand(n, 1 << 16, device="cuda")
    return {
        "best_codes": batch.find_best,
        "column_sums": lambda: batch.columns(0, c, REVERSE_KL),
        "row_sums": lambda: batch.row_sums(state, 0, c, slopes, REVERSE_KL),
        "weighted_codes_one": lambda: weighted_codes(batch, SECOND, lambda *_: batch.rows),
        "weighted_codes_given": lambda: weighted_codes(few, GIVEN, None, given=(given, given)),
        "probabilities": lambda: batch.probabilities(out, 0, 1 << 16),
    }.get(kernel, lambda: weighted_codes(batch, REVERSE_KL, lambda *_: slopes, 1.0))


def write(path: Path, arch: str, kernel: str, form: str, config: Configuration) -> None:
    """Puts a measured entry into a table, keeping all others; a table that is not there begins as the package's."""
    table = json.loads((path if path.exists() else TABLE).read_text())
    entry = table["architectures"].setdefault(arch, {})
    entry.setdefault("how", {})[f"{kernel} {form}"] = "measured"
    entry.setdefault(kernel, {})[form] = dataclasses.asdict(config)
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    os.replace(draft, path)


def main(arguments: list[str] | None = None) -> int:
    """The command; 2 without a GPU."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu.tune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kernel", action="append", choices=KERNELS, help="default: all")
    parser.add_argument("--form", action="append", choices=FORMS, help="default: all")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls per candidate (default: %(default)s)")
    parser.add_argument("--table", type=Path, default=TABLE, help="where to write (default: the package's table)")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("bench.gpu.tune: no GPU that PyTorch can use", file=sys.stderr)
        return 2
    arch = tuning.architecture(torch.device("cuda"))
    for kernel, form in itertools.product(given.kernel or KERNELS, given.form or FORMS):
        found = fastest(kernel, form, arch, given.rounds) if has_kernel(kernel, form, arch) else None
        if found:
            write(given.table, arch, kernel, form, found[0])
            print(f"{arch} {kernel} {form}: {found[0]}, {found[1]:.3g} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
