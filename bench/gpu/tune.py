"""The autotuner of the Triton backend: tries configurations and writes the fastest into the package's table.

    python -m bench.gpu.tune                        # on a GPU: times every candidate, for the GPU's architecture
    python -m bench.gpu.tune --static --arch sm_90  # without one: compiles every candidate and counts instructions

Measured entries are better than counted ones; the table notes for each architecture how its entries came about. A
candidate that spills registers or needs more shared memory than there is never enters the table.

Counting: thread instructions of the inner loop per logit, times 1 + 4 / (warps that fit on a multiprocessor together),
because a few warps cannot hide what they wait for.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import sys
from collections.abc import Iterator
from typing import Any

from bench.gpu.triton_resources import ARCHITECTURES, FORMS, Variant, compilers, is_used, modes, problem
from cplearn_kernels.backends.triton.tuning import KERNELS, TABLE, Configuration

_TWO_VIEWS = ("row_sums", "weighted_codes", "chunk_weights")
_GROUPED = ("chunk_weights", "weighted_chunk")


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


def count_all(
    archs: list[str], kernels: list[str], forms: list[str], jobs: int
) -> dict[tuple, tuple[Configuration, dict]]:
    """(arch, kernel, form) -> the cheapest candidate by counting, with the record of its dearest mode."""
    wanted = [
        Variant(arch, kernel, form, tuple(sorted(options.items())), **dataclasses.asdict(config))
        for arch in archs for kernel in kernels for form in forms if is_used(kernel, form, arch)
        for config in candidates(kernel, form, arch) for options in modes(kernel)[-1:]
    ]  # fmt: skip
    print(f"{len(wanted)} candidates to compile", flush=True)
    best: dict[tuple, tuple[Configuration, dict]] = {}
    costs: dict[tuple, float] = {}
    with compilers(jobs) as compiled:
        records = []
        for record in compiled(wanted):
            records.append(record)
            if len(records) % 20 == 0:
                print(f"  {len(records)} of {len(wanted)}", flush=True)
    for record in records:
        if problem(record):
            continue
        key = record["arch"], record["kernel"], record["form"]
        price = cost(record)
        if price < costs.get(key, float("inf")):
            costs[key] = price
            fields = {field.name: record[field.name] for field in dataclasses.fields(Configuration)}
            best[key] = Configuration(**fields), {**record, "cost": round(price, 1)}
    return best


def cost(record: dict[str, Any]) -> float:
    """Thread instructions per logit, raised where few warps fit on a multiprocessor."""
    lanes = 64 if record["arch"].startswith("gfx") else 32
    views = 2 if record["kernel"] in _TWO_VIEWS else 1
    logits = views * record["rows"] * record["codes"]
    per_logit = (record["loop"] or record["instructions"]) * record["warps"] * lanes / logits
    if lanes == 64:
        # 512 registers per lane of each of four SIMDs; 64 KB of shared memory.
        programs = max(
            1, min(4 * (512 // max(record["registers"], 1)) // record["warps"], 65536 // max(record["shared"], 1))
        )
    else:
        shared = {"sm_80": 164}.get(record["arch"], 228) * 1024
        registers = max(record["registers"], 24) * record["warps"] * 32
        programs = max(1, min(65536 // registers, shared // (record["shared"] + 1024), 32))
    return per_logit * (1 + 4 / (programs * record["warps"]))


def measure_all(kernels: list[str], forms: list[str], rounds: int) -> dict[tuple, tuple[Configuration, dict]]:
    """(arch, kernel, form) -> the fastest candidate on this GPU, each pass timed by events on random rows."""
    import torch

    from cplearn_kernels.backends.triton import tuning

    arch = tuning.architecture(torch.device("cuda"))
    best: dict[tuple, tuple[Configuration, dict]] = {}
    for kernel, form in itertools.product(kernels, forms):
        if not is_used(kernel, form, arch):
            continue
        run, logits = _pass(kernel, form)
        timed = []
        for config in candidates(kernel, form, arch):
            try:
                with tuning.override(kernel, form, config):
                    timed.append((_time(run, rounds), config))
            except Exception as error:  # noqa: BLE001  a candidate that does not fit is no reason to stop
                print(f"  {kernel} {form} {config}: {str(error).splitlines()[0][:100]}", flush=True)
        if timed:
            seconds, config = min(timed, key=lambda entry: entry[0])
            best[arch, kernel, form] = config, {"seconds": seconds, "logits_per_second": logits / seconds}
            print(f"{arch} {kernel} {form}: {config}, {logits / seconds:.3g} logits/s of {len(timed)}", flush=True)
    return best


def _pass(kernel: str, form: str):
    """(a function that runs one pass, its logits) at n = 256."""
    import torch

    import cplearn_kernels as cpk
    from cplearn_kernels.backends.triton import batch as triton_batch
    from cplearn_kernels.backends.triton.codes import codes_of
    from cplearn_kernels.backends.triton.kernels.constants import GIVEN, REVERSE_KL, SECOND
    from cplearn_kernels.backends.triton.sums import weighted_codes

    kronecker = form.startswith("kronecker")
    f = 1024 if form == "codes-grouped" else int(form.split("-")[1])
    n, c = 256, 1 << (20 if not kronecker else 21 if f < 4096 else 20)
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
    out = torch.empty(n, 1 << 16, device="cuda")
    both = 2 * n * c
    few = triton_batch.Batch(views[:1], codes_of(type(dictionary)(f, 1 << 16), views[0].device), [factor])
    given = torch.rand(n, 1 << 16, device="cuda")
    return {
        "best_codes": (batch.find_best, both),
        "column_sums": (lambda: batch.columns(0, c, REVERSE_KL), both),
        "row_sums": (lambda: batch.row_sums(state, 0, c, slopes, REVERSE_KL), both),
        "weighted_codes_one": (lambda: weighted_codes(batch, SECOND, lambda *_: batch.rows), both // 2),
        "weighted_codes_given": (lambda: weighted_codes(few, GIVEN, None, given=(given, given)), n << 16),
        "probabilities": (lambda: batch.probabilities(out, 0, 1 << 16), n << 16),
    }.get(kernel, (lambda: weighted_codes(batch, REVERSE_KL, lambda *_: slopes, 1.0), both))


def _time(run, rounds: int) -> float:
    """Median seconds of a call, after one that compiles and one that warms up."""
    import torch

    for _ in range(2):
        run()
    times = []
    for _ in range(rounds):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / 1000)
    return statistics.median(times)


def write(best: dict[tuple, tuple[Configuration, dict]], how: str) -> None:
    """Puts the entries into the package's table, keeping all others."""
    table = json.loads(TABLE.read_text())
    for (arch, kernel, form), (config, _) in best.items():
        entry = table["architectures"].setdefault(arch, {})
        entry.setdefault("how", {})[f"{kernel} {form}"] = how
        entry.setdefault(kernel, {})[form] = dataclasses.asdict(config)
    draft = TABLE.with_suffix(".part")
    draft.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
    os.replace(draft, TABLE)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.tune", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--static", action="store_true", help="compile and count instead of timing; needs no GPU")
    parser.add_argument("--arch", action="append", choices=ARCHITECTURES, help="with --static; default: all")
    parser.add_argument("--kernel", action="append", choices=KERNELS, help="default: all")
    parser.add_argument("--form", action="append", choices=FORMS, help="default: all")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls per candidate (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="compilers at a time (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print what would be written")
    chosen = parser.parse_args(arguments)
    kernels, forms = chosen.kernel or list(KERNELS), chosen.form or list(FORMS)
    if chosen.static:
        best = count_all(chosen.arch or list(ARCHITECTURES), kernels, forms, chosen.jobs)
    else:
        import torch

        if not torch.cuda.is_available():
            print("bench.gpu.tune: no GPU that PyTorch can use; --static counts instructions instead", file=sys.stderr)
            return 2
        best = measure_all(kernels, forms, chosen.rounds)
    for key, (config, record) in best.items():
        kept = {name: record[name] for name in ("cost", "registers", "shared", "logits_per_second") if name in record}
        print(*key, config, kept)
    if not chosen.dry_run:
        write(best, "counted" if chosen.static else "measured")
    return 0


if __name__ == "__main__":
    sys.exit(main())
