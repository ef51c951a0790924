"""The runs of a study: each an arm under one seed, in a folder of its own, trained in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from experiments.studies.definitions import STUDIES, Arm, Options
from train import checkpoint
from train.config import PRESETS, Config, differing_fields
from train.errors import InputError
from train.files import read_json
from train.run_folder import CHECKPOINT_FILE, CONFIG_FILE, SUMMARY_FILE

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Run:
    """One training run: an arm's options under one seed, in a folder named after them, so that studies share it."""

    arm: Arm
    seed: int
    folder: Path
    options: Options

    @property
    def name(self) -> str:
        """What messages call it."""
        return f"{self.arm.label}, seed {self.seed}"

    def config(self) -> Config:
        """The resolved configuration; InputError if an option is bad."""
        return Config(output_dir=self.folder, seed=self.seed, **self.options).resolved()

    def command(self, threads: int) -> list[str]:
        """The command line that trains it, going on from a checkpoint if there is one, with that one's threads."""
        resume = (self.folder / CHECKPOINT_FILE).exists()
        if resume:
            threads = checkpoint.load(self.folder / CHECKPOINT_FILE)["config"]["num_threads"]
        options = {"output_dir": self.folder, "seed": self.seed, "num_threads": threads, **self.options}
        # Every switch of Config is off unless it is named.
        options |= {name: () for name, value in self.options.items() if value is True}
        words = [sys.executable, "-m", "train"]
        for name, value in options.items():
            if value is not False:
                values = value if isinstance(value, tuple) else (value,)
                words += [f"--{name.replace('_', '-')}", *map(str, values)]
        return [*words, "--resume"] if resume else words

    def summary(self) -> dict[str, Any] | None:
        """What the finished run measured; None if it is not finished. InputError if the folder holds another run."""
        if not (self.folder / CONFIG_FILE).exists():
            return None
        if differences := differing_fields(read_json(self.folder / CONFIG_FILE), self.config()):
            raise InputError(
                f"{self.folder} holds a run with other options, expected the same "
                f"{', '.join(differences)} (choose another --output-dir, or remove it)."
            )
        path = self.folder / SUMMARY_FILE
        return read_json(path) if path.exists() else None


def plan(names: list[str], seeds: list[int], folder: Path, common: Options) -> dict[str, list[Run]]:
    """The runs of each study; one folder for an arm of several studies. An arm's options override the `common` ones."""

    def run(arm: Arm, seed: int) -> Run:
        own = dict(arm.options)
        if arm.times_epochs != 1:
            own["epochs"] = arm.times_epochs * common.get("epochs", PRESETS["cifar10"]["epochs"])
        name = "-".join(str(part).replace("_", "") for pair in own.items() for part in pair)
        return Run(arm, seed, folder / f"{name}-seed-{seed}", {**common, **own})

    return {
        name: [
            run(arm, seed)
            for arm in STUDIES[name].arms
            for seed in (seeds if arm.seeds is None else seeds[: arm.seeds])
        ]
        for name in names
    }


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
                child = subprocess.Popen(
                    run.command(self.threads), cwd=ROOT, stdout=log, stderr=log, env=environment, start_new_session=True
                )
                self.children.add(child)
            status = child.wait()
            with self.lock:
                self.children.discard(child)
        if status == 0 and run.summary() is not None:
            return None
        # The log goes on from earlier attempts, whose words do not explain this one.
        lines = log_path.read_bytes()[before:].decode(errors="replace").split("\n")
        said = [line for line in lines if line.startswith(("error:", "Stopped"))] or [line for line in lines if line]
        ending = f"exit status {status}" if status else "no summary although the exit status was 0"
        return f"{ending}: {said[-1] if said else 'nothing printed'} (all of it in {log_path})"

    def stop(self) -> None:
        """Ask every child to save a checkpoint and end."""
        with self.lock:
            self.stopping = True
            for child in self.children:
                child.send_signal(signal.SIGTERM)

    def train_all(self, runs: list[Run]) -> None:
        """Train what is not finished, with a progress bar; a run that fails is told of and the others go on."""
        unfinished = {run.folder: run for run in runs if run.summary() is None}
        started = time.monotonic()
        with ThreadPoolExecutor(self.jobs) as pool, tqdm(total=len(unfinished), unit="run", disable=None) as bar:
            try:
                begun = {pool.submit(self.train, run): run for run in unfinished.values()}
                for future in as_completed(begun):
                    bar.update()
                    tqdm.write(
                        f"{time.monotonic() - started:7.0f} s  {begun[future].name}: {future.result() or 'done'}"
                    )
            except KeyboardInterrupt:
                self.stop()
                raise
