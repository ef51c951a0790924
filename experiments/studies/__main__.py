"""`python -m train.studies NAME ...`: the runs of a study on CIFAR-10, their numbers collected in one JSON file."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from train import checkpoint
from train.config import PRESETS, Config, differing_fields
from train.errors import InputError
from train.run_files import CONFIG_FILE, SUMMARY_FILE
from train.study_definitions import BUDGET, STUDIES, Arm, Options

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Run:
    """One training run: an arm's options under one seed, in a folder named after them, so that studies share it."""

    arm: Arm
    seed: int
    folder: Path
    options: Options

    def config(self) -> Config:
        """The resolved configuration; InputError if an option is bad."""
        return Config(output_dir=self.folder, seed=self.seed, **self.options).resolved()

    def command(self, threads: int) -> list[str]:
        """The command line that trains it, going on from a checkpoint if there is one, with that one's threads."""
        resume = (self.folder / checkpoint.FILE).exists()
        if resume:
            threads = checkpoint.load(self.folder / checkpoint.FILE)["config"]["num_threads"]
        words = [sys.executable, "-m", "train", "--output-dir", str(self.folder), "--seed", str(self.seed),
                 "--num-threads", str(threads)]
        for name, value in self.options.items():
            if isinstance(value, bool):
                # Every switch of Config is off unless it is named.
                words += [f"--{name.replace('_', '-')}"] if value else []
            else:
                values = value if isinstance(value, tuple) else (value,)
                words += [f"--{name.replace('_', '-')}", *map(str, values)]
        return [*words, "--resume"] if resume else words

    def summary(self) -> dict[str, Any] | None:
        """What the finished run measured; None if it is not finished. InputError if the folder holds another run."""
        try:
            stored = json.loads((self.folder / CONFIG_FILE).read_text())
        except FileNotFoundError:
            return None
        if differences := differing_fields(stored, self.config()):
            raise InputError(f"{self.folder} holds a run with other options, expected the same "
                             f"{', '.join(differences)} (choose another --output-dir, or remove it).")
        try:
            return json.loads((self.folder / SUMMARY_FILE).read_text())
        except FileNotFoundError:
            return None


def plan(names: list[str], seeds: list[int], folder: Path, common: Options) -> dict[str, list[Run]]:
    """The runs of each study; one folder for an arm of several studies. An arm's options override the `common` ones."""
    def run(arm: Arm, seed: int) -> Run:
        own = dict(arm.options)
        if arm.times_epochs != 1:
            own["epochs"] = arm.times_epochs * common.get("epochs", PRESETS["cifar10"]["epochs"])
        name = "-".join(str(part).replace("_", "") for pair in own.items() for part in pair)
        return Run(arm, seed, folder / f"{name}-seed-{seed}", {**common, **own})

    return {name: [run(arm, seed) for arm in STUDIES[name].arms for seed in (seeds if arm.seeds is None else
                                                                            seeds[:arm.seeds])] for name in names}


class Pool:
    """Trains runs in processes of their own, several at a time; what is stopped goes on the next time."""

    def __init__(self, jobs: int, threads: int) -> None:
        self.jobs, self.threads = jobs, threads
        self.children: set[subprocess.Popen] = set()
        self.lock, self.stopping = threading.Lock(), False

    def train(self, run: Run) -> str | None:
        """Train one run to the end; None, or a sentence on what went wrong."""
        run.folder.mkdir(parents=True, exist_ok=True)
        log_path = run.folder / "log.txt"
        with log_path.open("ab") as log:
            with self.lock:
                if self.stopping:
                    return "stopped"
                environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
                before = log.tell()
                child = subprocess.Popen(run.command(self.threads), cwd=ROOT, stdout=log, stderr=log, env=environment,
                                         start_new_session=True)
                self.children.add(child)
            status = child.wait()
            with self.lock:
                self.children.discard(child)
        if status == 0:
            return None
        # The log goes on from earlier attempts, whose words do not explain this one.
        lines = log_path.read_bytes()[before:].decode(errors="replace").split("\n")
        said = [line for line in lines if line.startswith(("error:", "Stopped"))] or [line for line in lines if line]
        return f"exit status {status}: {said[-1] if said else 'nothing printed'} (all of it in {log_path})"

    def stop(self) -> None:
        """Ask every child to save a checkpoint and end."""
        with self.lock:
            self.stopping = True
            for child in self.children:
                child.send_signal(signal.SIGTERM)

    def train_all(self, runs: list[Run]) -> dict[Path, str]:
        """Train what is not finished, with a progress bar; {folder: what went wrong} of those that failed."""
        unfinished = {run.folder: run for run in runs if run.summary() is None}
        failures: dict[Path, str] = {}
        started = time.monotonic()
        with ThreadPoolExecutor(self.jobs) as pool, tqdm(total=len(unfinished), unit="run", disable=None) as bar:
            try:
                waiting = {pool.submit(self.train, run): run for run in unfinished.values()}
                while waiting:
                    for future in [f for f in waiting if f.done()]:
                        run = waiting.pop(future)
                        problem = future.result()
                        if problem is not None:
                            failures[run.folder] = problem
                        bar.update()
                        tqdm.write(f"{time.monotonic() - started:7.0f} s  {run.folder.name}: {problem or 'done'}")
                    time.sleep(0.2)
            except KeyboardInterrupt:
                self.stop()
                raise
        return failures


def collect(name: str, runs: list[Run], command: str, data_name: str, machine: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a study: what was asked, how it was run, and every finished run's summary, arm by arm."""
    study = STUDIES[name]
    arms = []
    for arm in study.arms:
        mine = [run for run in runs if run.arm is arm]
        # Seconds belong to a machine on which other runs went on at the same time: bench.train_step measures those.
        kept = [{key: value for key, value in run.summary().items() if "second" not in key and "_of_step" not in key}
                for run in mine]
        arms.append({"label": arm.label, "options": {**arm.options},
                     "runs": [{"seed": run.seed, **summary} for run, summary in zip(mine, kept)]})
    config = runs[0].config()

    def common_to_all(key: str) -> bool:
        return all(run.options.get(key) == runs[0].options[key] for run in runs)

    return {"study": name, "question": study.question, "baseline": study.baseline, "command": command,
            "data": data_name, "machine": machine,
            "steps": config.epochs * ((config.num_train or 50_000) // config.batch_size),
            "common_options": {key: str(value) if isinstance(value, Path) else value
                               for key, value in runs[0].options.items()
                               if common_to_all(key) and key != "data_dir"},
            "arms": arms}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    told = "\n".join(f"  {name:14} {study.question}" for name, study in STUDIES.items())
    result = argparse.ArgumentParser(
        prog="python -m train.studies", formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"{__doc__}\n\nStudies:\n{told}\n\nStopped at any point, the same command goes on; runs that are "
                    f"finished are not repeated.")
    result.add_argument("names", nargs="+", choices=list(STUDIES), metavar="NAME", help=", ".join(STUDIES))
    result.add_argument("--data-dir", type=Path, required=True, help="folder with CIFAR-10, as in python -m train")
    result.add_argument("--data-name", default="CIFAR-10", help="what the JSON calls the data (default: CIFAR-10)")
    result.add_argument("--output-dir", type=Path, default=Path("runs/studies"),
                        help="folder for the runs (default: runs/studies)")
    result.add_argument("--results", type=Path, default=Path("docs/results"),
                        help="folder for the JSON (default: docs/results)")
    result.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of every arm (default: 0 1 2)")
    result.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    result.add_argument("--threads", type=int, default=1, help="threads of each run (default: 1)")
    result.add_argument("--budget", choices=list(BUDGET), default="small",
                        help="small: minutes a run on one core; paper: 200 epochs of all images, for a GPU "
                             "(default: small)")
    result.add_argument("--dry-run", action="store_true", help="print the commands of the runs that are not finished")
    return result


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit status (0 done, 1 a run failed, 2 bad input, 130 stopped by SIGINT or SIGTERM)."""
    words = sys.argv[1:] if arguments is None else arguments
    options = parser().parse_args(words)
    try:
        if min(options.jobs, options.threads) < 1:
            raise InputError(f"--jobs and --threads were {options.jobs} and {options.threads}, expected at least 1.")
        return run_studies(options, shlex.join(["python", "-m", "train.studies", *words]))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("Stopped; the runs under way have saved checkpoints, and the same command goes on.", file=sys.stderr)
        return 130


def run_studies(options: argparse.Namespace, command: str) -> int:
    """Train what is missing of the named studies; each study's JSON is written when its runs are done."""
    common = {"dataset": "cifar10", "data_dir": options.data_dir.absolute(), **BUDGET[options.budget]}
    studies = plan(list(dict.fromkeys(options.names)), options.seeds, options.output_dir.absolute(), common)
    if not options.data_dir.is_dir():
        raise InputError(f"--data-dir was {options.data_dir}, expected an existing folder with CIFAR-10.")
    if options.dry_run:
        runs = {run.folder: run for study in studies.values() for run in study}
        print("\n".join(shlex.join(run.command(options.threads)) for run in runs.values() if run.summary() is None))
        return 0
    from train import machine

    described, failed = machine.describe(options.threads), False
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    pool = Pool(options.jobs, options.threads)
    for name, study in studies.items():
        if failures := pool.train_all(study):
            print(f"{name}: no JSON, because {len(failures)} of its runs did not finish.", file=sys.stderr)
            failed = True
            continue
        path = options.results / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = collect(name, study, command, options.data_name, described)
        checkpoint.write_atomically(path, lambda temporary: temporary.write_text(json.dumps(content, indent=1) + "\n"))
        print(f"{name}: {path}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
