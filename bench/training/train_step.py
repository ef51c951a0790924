"""Measures how a training step divides into views, encoder forward, loss, encoder backward and optimiser.

The step is that of `train.loop` on views of `TwoViews` with the recipe for CIFAR-10, and its stopwatch waits for a GPU
at the end of each part. "views" includes fetching the batch from the data set; "loss" is its forward and its gradient
with respect to the embeddings. Images are random uint8 unless --data-dir names CIFAR-10: no part depends on what they
show. The cases (values of c, other methods) take turns, in alternating direction; a turn is a few steps, and a share is
formed within a turn, so that what slows a whole turn cancels. The JSON:

    {"benchmark": "train_step", "machine": what `describe` returns, and "gpu", "settings": {...}, "targets": verdicts,
     "rows": [{"name", "method", "num_codes", "backend", "step": {"seconds": one number per round, and their spread},
               "parts": {part: {"share": one number per round, and their spread}}}]}
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.results import median_and_range, report
from bench.targets import Verdict, judged
from bench.timing import alternate, spread
from cplearn_kernels.backends import select
from train import backbones, data, loop, methods, optimisers
from train.config import Config
from train.data.augment import TwoViews
from train.errors import InputError
from train.machine import describe
from train.seeds import derive_seed

PARTS = ("views", "encoder forward", "loss", "encoder backward", "optimiser")
BATCH_SIZE = 256
IMAGES = 50_000  # as many as CIFAR-10 has: 154 MB, more than a cache holds
# Of a step of CPLearn with n = 256 and these many codes, the part takes less than this fraction.
TARGETS = (("loss", 1 << 14, 0.02), ("views", 1 << 14, 0.15), ("loss", 1 << 20, 0.35), ("views", 1 << 20, 0.15))


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
    return {
        "name": name, "method": config.method, "num_codes": config.num_codes if of_library else None,
        "backend": backend,
        "step": {"seconds": per_step, **spread(per_step)},
        "parts": {part: {"share": values, **spread(values)} for part, values in shares.items()},
    }  # fmt: skip


def judge(rows: Sequence[Mapping[str, Any]], batch_size: int) -> list[Verdict]:
    """The targets that `rows` measure; none with another batch size than theirs."""
    found = {(row["method"], row["num_codes"]): row["parts"] for row in rows} if batch_size == BATCH_SIZE else {}
    verdicts = []
    for part, num_codes, below in TARGETS:
        if parts := found.get(("cplearn", num_codes)):
            median, low, high = (100 * parts[part][key] for key in ("median", "min", "max"))
            text = f"{part} < {below:.0%} of a step, cplearn, n={BATCH_SIZE}, c={num_codes}"
            verdicts.append(judged(text, 100 * below, median, "%", [low, high], median < 100 * below))
    return verdicts


def tables(record: Mapping[str, Any]) -> list[list[dict[str, str]]]:
    """The settings, and one row per case: median (min..max) over the rounds."""
    rows = [
        {"": row["name"], "backend": row["backend"] or "-", "ms a step": median_and_range(row["step"], 1e3)}
        | {f"{part}, %": median_and_range(row["parts"][part], 100) for part in PARTS}
        for row in record["rows"]
    ]
    return [[{key: str(value) for key, value in record["settings"].items()}], rows]


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Measures as the command line says; the record. InputError for what the harness or the library rejects."""

    def config(method: str, **changes: Any) -> Config:
        # An epoch is one step at least, so these epochs never run out. No folder is read without --data-dir. Frozen
        # prototypes, as in SwAV's first steps, would be cheaper than the rest of a run.
        return Config(
            output_dir=Path(), dataset="cifar10", data_dir=given.data_dir or Path(), method=method,
            batch_size=given.batch_size, epochs=given.steps * (given.rounds + 2), backbone="resnet8",
            widths=(32, 64, 128), stem_stride=1, num_features=128, freeze_prototypes=0, device=given.device,
            precision=given.precision, num_threads=given.threads, **changes,
        ).resolved()  # fmt: skip

    codes = given.codes if "cplearn" in given.method else []
    configs = {f"cplearn, c={c}": config("cplearn", num_codes=c, backend=given.backend) for c in codes}
    configs |= {method: config(method) for method in given.method if method != "cplearn"}
    first = next(iter(configs.values()))
    if on_gpu := torch.device(first.device).type == "cuda":
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False  # as in `python -m train`
    machine = describe(given.threads) | {"gpu": torch.cuda.get_device_name(first.device) if on_gpu else None}
    shape = max(IMAGES, given.batch_size), 3, 32, 32
    images = data.load(first).train_images if given.data_dir else torch.randint(256, shape, dtype=torch.uint8)
    settings = {
        "device": torch.device(first.device).type, "batch_size": given.batch_size, "num_features": 128,
        "backbone": "ResNet-8, widths 32 64 128, stem stride 1", "precision": first.precision,
        "images": f"{len(images)} {'CIFAR-10' if given.data_dir else 'random'}", "rounds": given.rounds,
        "steps": given.steps,
    }  # fmt: skip
    rows = measure(configs, images.to(first.device), given.rounds, given.steps)
    return {"benchmark": "train_step", "machine": machine, "settings": settings, "rows": rows,
            "targets": judge(rows, given.batch_size)}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints, writes; status 1 if a target is missed, 2 on bad input."""
    parser = argparse.ArgumentParser(prog="python -m bench.training.train_step", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--method", nargs="+", choices=list(methods.METHODS), default=["cplearn"], help="methods to time (cplearn)")
    add("--codes", nargs="+", type=int, default=[1 << 14, 1 << 20], metavar="C", help="values of c (2^14, 2^20)")
    add("--backend", help="the library's backend; the fastest unless given")
    add("--batch-size", type=int, default=BATCH_SIZE, help="images a step (256)")
    add("--rounds", type=int, default=7, help="measured rounds (7)")
    add("--steps", type=int, default=3, help="steps of a turn (3)")
    add("--threads", type=int, default=torch.get_num_threads(), help="threads of torch and the library")
    add("--device", default="auto", help="cpu, cuda or auto")
    add("--precision", choices=["float32", "bfloat16"], help="of the encoder; bfloat16 on GPUs unless given")
    add("--data-dir", type=Path, help="folder with CIFAR-10; random images unless given")
    add("--json", type=Path, nargs="?", const=Path(), metavar="FILE", help="results (in bench/results without FILE)")
    given = parser.parse_args(arguments)
    try:
        torch.set_num_threads(given.threads)
        record = run(given)
        return report(record, tables(record), given.json)
    except (InputError, ValueError, OSError, RuntimeError) as error:
        print(f"bench.training.train_step: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
