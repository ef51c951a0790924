"""train/distributed/ending.py: whatever ends one process of a run ends all, and one of them says why, once."""

import signal
import subprocess
import sys
import time
from functools import partial

import pytest
from acts import OPTIONS, bad_data, bug, die, full_disk, hang, in_step, poison, record, steps
from ranks import Ranks
from running import ROOT, step, wait_for_an_epoch
from tiers import slow

from train import run_folder
from train.config import Config


def at(tmp_path):
    """Options of a run in the folder `run`."""
    return ["--output-dir", str(tmp_path / "run"), *OPTIONS]


def ends(tmp_path, options, act, status, *words):
    """Two processes end with this status, and one of them says one sentence with these words."""
    run = Ranks(tmp_path / "ranks", [*at(tmp_path), "--method", "barlow_twins", *options], act)
    began = time.monotonic()
    assert run.wait() == [status] * 2, run.everything
    assert time.monotonic() - began < 40
    said = [line for line in run.everything.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and all(word in said[0] for word in words), run.everything
    assert "Traceback" not in run.everything


@pytest.mark.parametrize("options, words", [
    ("--batch-size 63", ["error: --batch-size was 63", "a multiple of the 2 processes"]),
    slow("--resume", ["error: --resume was given, expected a checkpoint"]),
    slow("--method cplearn --backend abacus", ["error: The loss cannot be set", "abacus"]),
])  # fmt: skip
def test_bad_input_is_said_once(options, words, tmp_path):
    ends(tmp_path, options.split(), None, 2, *words)


@pytest.mark.slow
def test_an_unknown_option_is_explained_once(tmp_path):
    unknown = Ranks(tmp_path / "ranks", ["--abacus"])
    assert unknown.wait() == [2, 2] and "abacus" in unknown.text(0) and unknown.text(1) == ""


def test_a_folder_in_use_is_said_once(tmp_path):
    with run_folder.claim(Config(output_dir=tmp_path / "run")):
        ends(tmp_path, [], None, 2, "error: --output-dir", "in use by another run")


@pytest.mark.slow
def test_a_failure_of_one_process_ends_all(tmp_path):
    ends(tmp_path, [], partial(in_step, 4, 0, full_disk), 2, "error: Step 4 could not be saved", "No space left")
    assert step(tmp_path / "run") == 0
    ends(tmp_path, ["--overwrite"], partial(in_step, 0, 1, bad_data), 2, "error: rank 1: The data were bad")
    ends(tmp_path, ["--overwrite"], partial(in_step, 6, None, poison), 1, "error: The loss became nan at step 6 of 8")
    assert step(tmp_path / "run", "diverged.pt") == 5


def test_a_mistake_in_one_process_shows_its_traceback_and_ends_all(tmp_path):
    run = Ranks(tmp_path / "ranks", at(tmp_path), partial(in_step, 3, 1, bug))
    assert run.wait() == [1, 1]
    assert "ZeroDivisionError: a mistake" in run.text(1) and "Traceback" not in run.text(0)


@pytest.mark.slow
def test_a_killed_process_ends_the_run_which_goes_on_from_its_checkpoint(tmp_path):
    run = Ranks(tmp_path / "1", at(tmp_path), partial(in_step, 6, 1, die))
    assert run.wait() == [1, -signal.SIGKILL], run.everything
    assert run.text(0).count("error: Another process is gone") == 1 and "--resume" in run.text(0)
    assert "Traceback" not in run.text(0)
    assert step(tmp_path / "run") == 4
    resumed = Ranks(tmp_path / "2", [*at(tmp_path), "--resume"], partial(record, tmp_path / "steps"))
    assert resumed.wait() == [0, 0] and len(steps(tmp_path / "steps")) == 4


@pytest.mark.slow
def test_a_process_that_does_not_answer_ends_the_run(tmp_path):
    run = Ranks(tmp_path / "1", [*at(tmp_path), "--method", "swav"], hang)
    assert run.wait(40) == [1, 1]
    assert run.everything.count("error: Another process is gone or has not answered") == 1, run.everything


@pytest.mark.slow
def test_torchrun_forwards_a_signal_and_the_run_stops_well(tmp_path):
    torchrun = "-m torch.distributed.run --nproc-per-node 2 -m train".split()
    command = [sys.executable, *torchrun, *at(tmp_path), "--epochs", "500"]
    process = subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        wait_for_an_epoch(process, tmp_path / "run")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode != 0
    said = f"Stopped by SIGTERM after step {step(tmp_path / 'run')} of 2000; a checkpoint is saved."
    assert errors.count(said) == 1, errors
