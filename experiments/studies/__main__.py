"""`python -m experiments.studies NAME ...`: trains a study's runs on CIFAR-10 and collects their numbers as JSON."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

from experiments.studies.definitions import BUDGET, STUDIES
from experiments.studies.runs import Pool, Run, plan
from train import machine
from train.errors import InputError
from train.files import write_json

RESULTS = Path(__file__).parent / "results"


def collect(name: str, runs: list[Run], command: str, data_name: str, machine: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a study: what was asked, how it was run, and every finished run's summary, arm by arm.

    An arm of which no run is finished is left out; runs that are not finished are named under "missing", if there are.
    """
    study, arms, missing = STUDIES[name], [], []
    for arm in study.arms:
        found = []
        for run in (run for run in runs if run.arm is arm):
            summary = run.summary()
            if summary is None:
                missing.append(run.name)
                continue
            # Seconds belong to a machine on which other runs went on at the same time.
            kept = {key: value for key, value in summary.items() if "second" not in key and "_of_step" not in key}
            found.append({"seed": run.seed, **kept})
        if found:
            arms.append({"label": arm.label, "options": {**arm.options}, "runs": found})
    config = runs[0].config()

    def common_to_all(key: str) -> bool:
        return all(run.options.get(key) == runs[0].options[key] for run in runs)

    return {
        "study": name,
        "question": study.question,
        "baseline": study.baseline,
        "command": command,
        "data": data_name,
        "machine": machine,
        "steps": config.epochs * ((config.num_train or 50_000) // config.batch_size),
        "common_options": {
            key: str(value) if isinstance(value, Path) else value
            for key, value in runs[0].options.items()
            if common_to_all(key) and key != "data_dir"
        },
        **({"missing": missing} if missing else {}),
        "arms": arms,
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    told = "\n".join(f"  {name:14} {study.question}" for name, study in STUDIES.items())
    result = argparse.ArgumentParser(
        prog="python -m experiments.studies",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"{__doc__}\n\nStudies:\n{told}\n\nStopped at any point, the same command goes on; runs that are "
        f"finished are not repeated.",
    )
    result.add_argument("names", nargs="+", choices=list(STUDIES), metavar="NAME", help=", ".join(STUDIES))
    result.add_argument("--data-dir", type=Path, required=True, help="folder with CIFAR-10, as in python -m train")
    result.add_argument("--data-name", default="CIFAR-10", help="what the JSON calls the data (default: CIFAR-10)")
    result.add_argument(
        "--output-dir", type=Path, default=Path("runs/studies"), help="folder for the runs (default: runs/studies)"
    )
    result.add_argument(
        "--results", type=Path, default=RESULTS, help="folder for the JSON (default: results, beside this program)"
    )
    result.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of every arm (default: 0 1 2)")
    result.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    result.add_argument("--threads", type=int, default=1, help="threads of each run (default: 1)")
    result.add_argument(
        "--budget",
        choices=list(BUDGET),
        default="small",
        help="small: minutes a run on one core; paper: 200 epochs of all images, for a GPU (default: small)",
    )
    result.add_argument("--dry-run", action="store_true", help="print the commands of the runs that are not finished")
    return result


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit status (0 done, 1 a run did not finish, 2 bad input, 130 stopped by SIGINT or SIGTERM)."""
    words = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(words)
    try:
        if min(options.jobs, options.threads) < 1:
            raise InputError(f"--jobs and --threads were {options.jobs} and {options.threads}, expected at least 1.")
        return run_studies(options, shlex.join(["python", "-m", "experiments.studies", *words]))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("Stopped; the runs under way have saved checkpoints, and the same command goes on.", file=sys.stderr)
        return 130


def run_studies(options: argparse.Namespace, command: str) -> int:
    """Train what is missing of the named studies; a study's JSON is written when its runs have ended."""
    common = {"dataset": "cifar10", "data_dir": options.data_dir.absolute(), **BUDGET[options.budget]}
    studies = plan(list(dict.fromkeys(options.names)), options.seeds, options.output_dir.absolute(), common)
    if not options.data_dir.is_dir():
        raise InputError(f"--data-dir was {options.data_dir}, expected an existing folder with CIFAR-10.")
    if options.dry_run:
        runs = {run.folder: run for study in studies.values() for run in study}
        print("\n".join(shlex.join(run.command(options.threads)) for run in runs.values() if run.summary() is None))
        return 0
    described, missing = machine.describe(options.threads), []
    # Under nohup or in a script's background SIGINT is ignored and stays so; SIGTERM always stops.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    pool = Pool(options.jobs, options.threads)
    for name, study in studies.items():
        pool.train_all(study)
        content = collect(name, study, command, options.data_name, described)
        missing += [f"{run} ({name})" for run in content.get("missing", [])]
        if not content["arms"]:
            continue
        path = options.results / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content, indent=1)
        print(f"{name}: {path}")
    if missing:
        print(
            f"error: {len(missing)} runs ended without a summary ({'; '.join(missing)}), expected all of them to "
            f"finish; the others are collected, and the same command goes on with these.",
            file=sys.stderr,
        )
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
