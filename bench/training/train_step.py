"""Measures how a training step divides into views, encoder forward, loss, encoder backward and optimiser.

    python -m bench.training.train_step                       # ResNet-8, CPLearn with 2^14 and 2^20 codes, about a minute
    python -m bench.training.train_step --show FILE.json      # the tables of an earlier run

The step is that of `train.loop` on views of `train.data.augment.TwoViews` with the recipe for CIFAR-10, and its stopwatch
waits for a GPU at the end of each part. "views" includes fetching the batch from the data set; "loss" is its forward
and its gradient with respect to the embeddings. Images are random uint8 unless --data-dir names CIFAR-10: no part
depends on what they show. The cases (values of c, other methods) take turns, in alternating direction; a turn is a few
steps, and a share is formed within a turn, so that what slows a whole turn cancels. The JSON:

    {"schema": 1, "benchmark": "train_step", "machine": `train.machine.describe`'s, and "gpu",
     "settings": {"device", "batch_size", "num_features", "backbone", "precision", "images", "rounds", "steps"},
     "rows": [{"name", "method", "num_codes", "backend", "step": {"seconds": one number per round, and their spread},
               "parts": {part: {"share": one number per round, and their spread}}}],
     "bars": what `judge` returns}
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Mapping, Sequence

import torch
from torch import Tensor

from bench.gpu_record import write_json
from train.machine import describe, slug
from bench.results import RESULTS, ResultsError
from bench.timing import alternate, spread
from cplearn_kernels.backends import select
from train import backbones, data, loop, methods, optimisers
from train.data.augment import TwoViews
from train.config import Config
from train.errors import InputError
from train.seeds import derive_seed

SCHEMA, _KEYS = 1, {"machine", "settings", "rows", "bars"}
PARTS = ("views", "encoder forward", "loss", "encoder backward", "optimiser")
BATCH_SIZE = 256
IMAGES = 50_000  # as many as CIFAR-10 has: 154 MB, more than a cache holds


@dataclass(frozen=True)
class Bar:
    """A part of CPLearn's step with this many codes must take less than the fraction `below` of it, at n = 256."""

    part: str
    num_codes: int
    below: float


BARS = (Bar("loss", 1 << 14, 0.02), Bar("views", 1 << 14, 0.15),
        Bar("loss", 1 << 20, 0.35), Bar("views", 1 << 20, 0.15))


class Turn:
    """One method in training; each call makes `steps` steps and appends the seconds of their parts to `taken`."""

    def __init__(self, config: Config, images: Tensor, steps: int) -> None:
        torch.manual_seed(derive_seed(config.seed, "weights"))
        self.config, self.images, self.steps = config, images, steps
        self.method = methods.build(config, backbones.build(config)).to(config.device).train()
        self.optimiser = optimisers.build(config, self.method)
        self.views = TwoViews(config).to(config.device)
        self.encode = loop.BothViews(loop.encoder(config, self.method), self.method)
        self.batches = loop.batches(config, len(images), 0)
        self.taken: list[dict[str, float]] = []

    def __call__(self) -> None:
        seconds: dict[str, float] = {}
        watch = loop.Stopwatch(seconds, self.config.device)
        for _ in range(self.steps):
            first, second = self.views(self.images[next(self.batches).to(self.config.device)])
            watch.mark("views")
            try:
                loop.train_step(self.encode, self.method, self.optimiser, first, second, watch)
            except loop.NotFinite as what:
                raise InputError(f"{what} with {self.config.method}, expected a finite number.") from None
        self.taken.append(seconds)


def measure(configs: Mapping[str, Config], images: Tensor, rounds: int, steps: int) -> list[dict[str, Any]]:
    """The rows of a record, one per named resolved configuration, from uint8 images `(N, 3, 32, 32)` on the device.

    The configurations' `epochs` have to allow two turns more than `rounds`, each of `steps` steps.
    """
    turns = {name: Turn(config, images, steps) for name, config in configs.items()}
    alternate(turns, rounds, turn_seconds=0.0)  # one call a turn: two to warm up, then one a round
    return [as_row(name, turn.method, turn.config, turn.taken[-rounds:], steps) for name, turn in turns.items()]


def as_row(name: str, method: Any, config: Config, taken: Sequence[Mapping[str, float]], steps: int) -> dict[str, Any]:
    """One row of a record, from the seconds of each part in each round."""
    backend, of_library = config.backend, config.method == "cplearn"
    if of_library and backend is None:
        h = torch.empty(config.batch_size, config.num_features, device=config.device)
        backend = select(None, "cplearn_loss", method.criterion.dictionary, h).NAME
    per_step = [sum(seconds.values()) / steps for seconds in taken]
    shares = {part: [seconds[part] / sum(seconds.values()) for seconds in taken] for part in PARTS}
    return {"name": name, "method": config.method, "num_codes": config.num_codes if of_library else None,
            "backend": backend, "step": {"seconds": per_step, **spread(per_step)},
            "parts": {part: {"share": values, **spread(values)} for part, values in shares.items()}}


def judge(rows: Sequence[Mapping[str, Any]], batch_size: int, bars: Sequence[Bar] = BARS) -> list[dict[str, Any]]:
    """One verdict per bar: `text`, `below`, `measured` (share: "median", "min", "max") and `met`.

    The last two are None where no row measured it, or not with the batch size of the bars.
    """
    found = {(row["method"], row["num_codes"]): row["parts"] for row in rows} if batch_size == BATCH_SIZE else {}
    verdicts = []
    for bar in bars:
        share = found.get(("cplearn", bar.num_codes), {}).get(bar.part)
        measured = {key: share[key] for key in ("median", "min", "max")} if share else None
        verdicts.append({"text": f"{bar.part} < {bar.below:.0%} of a step, cplearn, n={BATCH_SIZE}, c={bar.num_codes}",
                         "below": bar.below, "measured": measured,
                         "met": share["median"] < bar.below if share else None})
    return verdicts


def table(record: Mapping[str, Any]) -> str:
    """The record as plain text: where it was measured, one line per row, one line per bar."""
    machine, settings = record["machine"], record["settings"]
    gpu = f"{machine['gpu']}, " if machine["gpu"] else ""
    blocks = [f"{gpu}{machine['cpu']}, {machine['threads']} threads; torch {machine['torch']}; cplearn-kernels "
              f"{machine['cplearn_kernels']} at {machine['commit'] or 'no commit'}; {machine['date']}; load before "
              f"{machine['load_average']}\n{settings['backbone']}, n={settings['batch_size']}, "
              f"f={settings['num_features']}, {settings['precision']}; {settings['images']} images; "
              f"{settings['rounds']} rounds, {settings['steps']} steps a turn"]
    lines = [["", "backend", "ms a step", *(f"{part}, %" for part in PARTS)]]
    for row in record["rows"]:
        shares = (_cell(row["parts"][part], 100) for part in PARTS)
        lines.append([row["name"], row["backend"] or "-", _cell(row["step"], 1e3), *shares])
    blocks.append("median (min..max) over the rounds\n" + _aligned(lines))
    lines = [["bar", "measured, %", ""]]
    for bar in record["bars"]:
        measured, verdict = "-", "not measured"
        if share := bar["measured"]:
            points = 100 * abs(bar["below"] - share["median"])
            measured, verdict = _cell(share, 100), f"{'met' if bar['met'] else 'MISSED'} by {points:.2f} points"
        lines.append([bar["text"], measured, verdict])
    return "\n\n".join([*blocks, _aligned(lines)])


def _cell(values: Mapping[str, float], factor: float) -> str:
    numbers = (factor * values[key] for key in ("median", "min", "max"))
    median, low, high = (f"{number:.0f}" if number >= 99.95 else f"{number:#.3g}" for number in numbers)
    return f"{median} ({low}..{high})"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


def load(path: Path) -> dict[str, Any]:
    """Reads a record; ResultsError if it is missing, damaged or of another benchmark or schema."""
    try:
        record = json.loads(path.read_text())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ResultsError(f"{path}: not a readable JSON file ({error})") from None
    kind = {"benchmark": "train_step", "schema": SCHEMA}
    if not isinstance(record, dict) or not kind.items() <= record.items() or not _KEYS <= record.keys():
        raise ResultsError(f"{path}: not a record with {kind} and {', '.join(sorted(_KEYS))}")
    return record


def default_path(record: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    """Where a record belongs: device, processor and threads make the file's name, as for the other benchmarks."""
    machine, device = record["machine"], record["settings"]["device"]
    return folder / f"train_step-{device}-{slug(machine['gpu'] or machine['cpu'])}-{machine['threads']}t.json"


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Measures as the command line says; the record. InputError for what the harness or the library rejects."""
    def config(method: str, **changes: Any) -> Config:
        # An epoch is one step at least, so these epochs never run out. No folder is read without --data-dir. Frozen
        # prototypes, as in SwAV's first steps, would be cheaper than the rest of a run.
        return Config(output_dir=Path(), dataset="cifar10", data_dir=given.data_dir or Path(), method=method,
                      batch_size=given.batch_size, epochs=given.steps * (given.rounds + 2), backbone="resnet8",
                      widths=(32, 64, 128), stem_stride=1, num_features=128, freeze_prototypes=0, device=given.device,
                      precision=given.precision, num_threads=given.threads, **changes).resolved()

    codes = given.codes if "cplearn" in given.method else []
    configs = {f"cplearn, c={c}": config("cplearn", num_codes=c, backend=given.backend) for c in codes}
    configs |= {method: config(method) for method in given.method if method != "cplearn"}
    first = next(iter(configs.values()))
    if on_gpu := torch.device(first.device).type == "cuda":
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False  # as in `python -m train`
    machine = describe(given.threads) | {"gpu": torch.cuda.get_device_name(first.device) if on_gpu else None}
    shape = max(IMAGES, given.batch_size), 3, 32, 32
    images = data.load(first).train_images if given.data_dir else torch.randint(256, shape, dtype=torch.uint8)
    settings = {"device": torch.device(first.device).type, "batch_size": given.batch_size, "num_features": 128,
                "backbone": "ResNet-8, widths 32 64 128, stem stride 1", "precision": first.precision,
                "images": f"{len(images)} {'CIFAR-10' if given.data_dir else 'random'}",
                "rounds": given.rounds, "steps": given.steps}
    rows = measure(configs, images.to(first.device), given.rounds, given.steps)
    return {"schema": SCHEMA, "benchmark": "train_step", "machine": machine, "settings": settings, "rows": rows,
            "bars": judge(rows, given.batch_size)}


def positive(text: str) -> int:
    """A whole number of at least 1, as argparse wants it."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints, writes; status 1 if --require-bars finds a bar missed or not measured, 2 on bad input."""
    parser = argparse.ArgumentParser(prog="python -m bench.training.train_step", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--method", nargs="+", choices=list(methods.METHODS), default=["cplearn"], help="methods to time (cplearn)")
    add("--codes", nargs="+", type=positive, default=[1 << 14, 1 << 20], metavar="C", help="values of c (2^14, 2^20)")
    add("--backend", help="the library's backend; the fastest unless given")
    add("--batch-size", type=positive, default=BATCH_SIZE, help="images a step (256)")
    add("--rounds", type=positive, default=7, help="measured rounds (7)")
    add("--steps", type=positive, default=3, help="steps of a turn (3)")
    add("--threads", type=positive, default=torch.get_num_threads(), help="threads of torch and the library")
    add("--device", default="auto", help="cpu, cuda or auto")
    add("--precision", choices=["float32", "bfloat16"], help="of the encoder; bfloat16 on GPUs unless given")
    add("--data-dir", type=Path, help="folder with CIFAR-10; random images unless given")
    add("--json", type=Path, nargs="?", const=Path(), metavar="FILE",
        help="write a results file; without FILE in bench/results, named by device, processor and threads")
    add("--require-bars", action="store_true", help="status 1 unless all bars are measured and met")
    add("--show", type=Path, metavar="FILE", help="print the tables of a results file only")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    try:
        if given.json is not None and not given.json.parent.is_dir():
            raise ResultsError(f"--json was {given.json}, expected a file in an existing folder")
        record = run(given) if given.show is None else load(given.show)
        print(table(record))
        if given.json is not None and given.show is None:
            path = default_path(record) if given.json == Path() else given.json
            write_json(path, record)
            print(f"\nwritten: {path.name}")
    except (InputError, ResultsError, OSError) as error:
        print(f"bench.training.train_step: {error}", file=sys.stderr)
        return 2
    return int(given.require_bars and not all(bar["met"] for bar in record["bars"]))


if __name__ == "__main__":
    sys.exit(main())
