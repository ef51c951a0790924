"""`python -m experiments.theorem`: free embeddings under the loss, and what the theory says of them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import torch
import tyro

from experiments.theorem import measures, tables
from experiments.theorem.optimum import Settings, optimise, problem
from train import machine
from train.errors import InputError, exit_status
from train.files import write_json


@dataclass(frozen=True)
class Options(Settings):
    """Optimise free embeddings under the loss and compare the optimum with the theory's."""

    output: Path = Path("embedding_theorem.json")
    """Results, written after every point; points it already holds are skipped."""
    codes: tuple[int, ...] = (16, 64, 256, 1024, 4096, 65536, 1 << 20)
    """Values of c."""
    dictionary: tuple[Literal["hadamard", "rademacher"], ...] = ("hadamard", "rademacher")
    """Of which signs the codes are made."""
    num_threads: int = 1
    """CPU threads."""
    table: Path | None = None
    """Only print the results in this file as Markdown tables."""


def run(settings: Settings, kinds: Sequence[str], codes: Sequence[int], output: Path, command: str, say=print) -> dict:
    """Do the points that `output` lacks, writing it after each. Raises InputError."""
    for kind in kinds:
        for num_codes in codes:
            problem(settings, kind, num_codes)
    if not output.parent.is_dir():
        raise InputError(f"--output was {output}, expected a file in a folder that exists.")
    described = machine.describe(torch.get_num_threads())
    results = {"command": command, "settings": asdict(settings), "machine": described, "points": []}
    if output.exists():
        results = tables.load(output)
        differing = [name for name, value in asdict(settings).items() if results["settings"].get(name) != value]
        if differing:
            raise InputError(f"{output} is of other settings, expected the same {', '.join(differing)}.")
    done = {(point["dictionary"], point["num_codes"]) for point in results["points"]}
    for kind in kinds:
        for num_codes in codes:
            name = f"{kind}, {num_codes} codes"
            if (kind, num_codes) in done:
                say(f"{name}: done before")
                continue
            h, effort = optimise(settings, kind, num_codes, lambda text, name=name: say(f"{name}: {text}"))
            dictionary, temperature = problem(settings, kind, num_codes)
            point = {"dictionary": kind, "num_codes": num_codes, "num_rows": len(h), "temperature": temperature}
            point |= effort | measures.measure(h, dictionary, temperature)
            results["points"].append(point)
            done.add((kind, num_codes))
            write_json(output, results, indent=1)
            say(
                f"{name}, {len(h)} rows: {effort['steps']} steps in {effort['seconds']} s, loss − floor "
                f"{point['loss_above_floor']:.4f}, max p {point['max_p_mean']:.4f}, deviation {point['deviation']:.3f}"
            )
    return results


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    options = tyro.cli(Options, args=given, prog="python -m experiments.theorem")
    return exit_status(lambda: _run(options, shlex.join(["python", "-m", "experiments.theorem", *given])))


def _run(options: Options, command: str) -> None:
    if options.table:
        print(tables.tables(tables.load(options.table)))
        return
    for name, least in (("num_features", 2), ("num_rows", 2), ("steps", 1), ("num_threads", 1)):
        if (value := getattr(options, name)) is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} was {value}, expected at least {least}.")
    if not options.seconds_per_point > 0:
        raise InputError(f"--seconds-per-point was {options.seconds_per_point}, expected more than 0.")
    torch.set_num_threads(options.num_threads)
    settings = Settings(**{field.name: getattr(options, field.name) for field in fields(Settings)})
    run(settings, options.dictionary, options.codes, options.output, command, lambda text: print(text, flush=True))


if __name__ == "__main__":
    sys.exit(main())
