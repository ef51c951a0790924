"""`python -m experiments.theorem`: optimises free embeddings under the loss and compares the optimum with the theory's."""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from experiments.theorem import measures, tables
from experiments.theorem.optimum import DICTIONARIES, Settings, optimise, problem
from train import machine
from train.errors import InputError
from train.files import write_json


def run(settings: Settings, kinds: list[str], codes: list[int], output: Path, command: str, say=print) -> dict:
    """Do the points that `output` lacks, writing it after each. Raises InputError."""
    for kind in kinds:
        for num_codes in codes:
            problem(settings, kind, num_codes)
    if not output.parent.is_dir():
        raise InputError(f"--output was {output}, expected a file in a folder that exists.")
    results = {"command": command, "settings": asdict(settings),
               "machine": machine.describe(torch.get_num_threads()), "points": []}  # fmt: skip
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
            h, effort = optimise(settings, kind, num_codes, lambda text: say(f"{name}: {text}"))
            dictionary, temperature = problem(settings, kind, num_codes)
            point = {"dictionary": kind, "num_codes": num_codes, "num_rows": len(h), "temperature": temperature,
                     **effort, **measures.measure(h, dictionary, temperature)}  # fmt: skip
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
    parser = argparse.ArgumentParser(prog="python -m experiments.theorem", description=__doc__.split(": ", 1)[1])
    add = parser.add_argument
    default = Settings()
    add(
        "--output",
        type=Path,
        default=Path("embedding_theorem.json"),
        help="results, written after every point; points it already holds are skipped (%(default)s)",
    )
    add("--num-features", type=int, default=default.num_features, help="f (%(default)s)")
    add(
        "--codes",
        type=int,
        nargs="+",
        default=[16, 64, 256, 1024, 4096, 65536, 1 << 20],
        help="values of c (16 to 2^20)",
    )
    add("--dictionary", nargs="+", choices=DICTIONARIES, default=list(DICTIONARIES), help="(both)")
    add("--num-rows", type=int, help="n of every point; without it 4 c as long as that is affordable, at least 256")
    add("--steps", type=int, help="of every point; without it 60 to 600, by the cost of one")
    add(
        "--seconds-per-point",
        type=float,
        default=default.seconds_per_point,
        help="cuts slow schedules short (%(default)s)",
    )
    add("--eps", type=float, help="of the default temperature; without it min(1e-8, 1/(100 c))")
    add("--seed", type=int, default=default.seed, help="of codes and first rows (%(default)s)")
    add("--num-threads", type=int, default=1, help="(%(default)s)")
    add("--table", type=Path, metavar="FILE", help="only print the results in FILE as Markdown tables")
    options = parser.parse_args(arguments)
    try:
        if options.table:
            print(tables.tables(tables.load(options.table)))
            return 0
        for name, least in (("num_features", 2), ("num_rows", 2), ("steps", 1), ("num_threads", 1)):
            if (value := getattr(options, name)) is not None and value < least:
                raise InputError(f"--{name.replace('_', '-')} was {value}, expected at least {least}.")
        if not options.seconds_per_point > 0:
            raise InputError(f"--seconds-per-point was {options.seconds_per_point}, expected more than 0.")
        torch.set_num_threads(options.num_threads)
        given = sys.argv[1:] if arguments is None else arguments
        run(Settings(options.num_features, options.eps, options.num_rows, options.steps, options.seconds_per_point,
                     options.seed), options.dictionary, options.codes, options.output,
            shlex.join(["python", "-m", "experiments.theorem", *given]), lambda text: print(text, flush=True))  # fmt: skip
    except InputError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
