"""Runs without evaluation in this process, methods and optimisers to run them with, and what checkpoints say."""

import json
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

import train.__main__ as program
from train import backbones, checkpoint, evaluate, methods, optimisers

ROOT = Path(__file__).resolve().parents[2]
# The prototypes thaw after step 1; the queue of 40 is full after step 2, in the middle of a batch.
SWAV = "--num-prototypes 8 --queue-length 40 --freeze-prototypes 1 --projector-hidden 16".split()
METHODS = {"cplearn": [], "barlow_twins": ["--projector-hidden", "16"], "swav": SWAV}
OPTIMISERS = {"adam": [], "sgd": ["--lr", "0.05"], "lars": ["--lr", "0.2", "--weight-decay", "1e-4"]}
interrupt, terminate = (partial(signal.raise_signal, signum) for signum in (signal.SIGINT, signal.SIGTERM))


class Trained(Exception):
    """Ends a run after its training: what comes then takes longer than a tiny run."""


def go(options):
    """The exit status of `python -m train` without evaluation."""

    def stop(*_):
        raise Trained

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "judge", stop)
        try:
            return program.main(options)
        except Trained:
            return 0


def make(config, seed=0):
    """A method with weights from a seed, and its optimiser."""
    torch.manual_seed(seed)
    method = methods.build(config, backbones.build(config))
    return method, optimisers.build(config, method)


def build(config):
    """A method alone."""
    return make(config)[0]


def kind(method, optimiser="adam"):
    """Options for this method and optimiser."""
    return ["--method", method, "--optimiser", optimiser, *METHODS[method], *OPTIMISERS[optimiser]]


def rows(folder):
    """The metrics of each epoch."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def python(script):
    """What became of a script in a process of its own."""
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)


def wait_for_an_epoch(process, folder, seconds=120):
    """Until a run in a process of its own has finished its first epoch."""
    deadline = time.monotonic() + seconds
    while not (folder / "metrics.jsonl").exists() or not rows(folder):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)


def state(path):
    """What a checkpoint says, but for the seconds and the places."""
    content = checkpoint.load(path)
    content["progress"].pop("seconds")
    return {name: content[name] for name in ("method", "optimiser", "progress")}


def step(folder, name="checkpoint.pt"):
    """The step that a checkpoint was saved after."""
    return checkpoint.load(folder / name)["progress"]["step"]


def same(a, b):
    """Whether two nested states agree to the last bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, list) else a == b


def equal_runs(one, other):
    """Same bytes of metrics, same weights, buffers, optimiser and progress."""
    equal_metrics = (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    return equal_metrics and same(state(one / "checkpoint.pt"), state(other / "checkpoint.pt"))
