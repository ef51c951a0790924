"""Full disks, lost folders, and losses and gradients that are not finite: said once, and nothing good is lost."""

import resource
from contextlib import contextmanager

import pytest
import torch
from running import equal_runs, go, kind, rows, step, terminate
from tiers import slow

import train.__main__ as program
from train import checkpoint, loop, methods


def full(*_, **__):
    raise OSError(28, "No space left on device")


@contextmanager
def no_room():
    """torch.save finds the disk full."""
    with pytest.MonkeyPatch.context() as patch:
        yield lambda: patch.setattr(torch, "save", full)


@contextmanager
def no_long_files():
    """The system itself fails every write beyond 10 kB of a file, having written that much."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("trouble", [no_room, no_long_files])
@pytest.mark.parametrize("full, stopped, kept, lost", [(5, True, 3, 5), slow(2, False, 0, 3), slow(5, False, 3, 6)])
def test_a_disk_that_fills_up_during_training(
    trouble, full, stopped, kept, lost, tiny_options, tmp_path, fails, unbroken, during
):
    """Full in a step, found when the epoch ends or SIGTERM asks for a checkpoint: the one before is whole."""
    run = tmp_path / "run"
    with trouble() as begin:
        during(full, lambda: (begin(), stopped and terminate()))
        fails(go, tiny_options, f"Step {lost} could not be saved in {run}", "room", "--resume")
    during()
    assert not list(run.glob("*.part")) and step(run) == kept
    assert go([*tiny_options, "--resume"]) == 0
    assert equal_runs(run, unbroken())


def test_a_disk_without_room_is_found_before_training(tiny_options, fails, monkeypatch):
    monkeypatch.setattr(loop, "train", lambda *_: pytest.fail("training began"))
    monkeypatch.setattr(checkpoint, "save", full)
    fails(go, tiny_options, "No space left", "folder with room")


def test_a_folder_that_vanishes_during_training(tiny_options, tmp_path, fails, during):
    during(2, lambda: (tmp_path / "run").rename(tmp_path / "elsewhere"))
    fails(go, tiny_options, str(tmp_path / "run"), "Step 3 could not be saved")
    assert step(tmp_path / "elsewhere") == 0


@pytest.mark.parametrize("where", ["file/run", "/proc/run", "/proc/self/run"])
def test_a_folder_that_cannot_be_written_is_said_before_data_are_loaded(where, tiny, tmp_path, fails, monkeypatch):
    monkeypatch.setattr(program, "load", lambda *_: pytest.fail("data were loaded"))
    (tmp_path / "file").write_text("")
    path = tmp_path / where
    fails(go, ["--output-dir", path, *tiny], str(path), "--output-dir", "expected a folder that can be written")


@pytest.mark.parametrize("method, poison", [("barlow_twins", "inf"), slow("cplearn", "nan"), slow("swav", "nan")])
def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_what_was_before(
    method, poison, tiny_options, tmp_path, fails, unbroken
):
    plain, calls, run = methods.METHODS[method].loss, [], tmp_path / "run"

    def loss(self, h1, h2):
        if len(h1) == 32:  # a training step, not the trial of two rows
            calls.append(1)
        value, terms = plain(self, h1, h2)
        return value * float(poison) if len(calls) == 5 else value, terms

    options, said = [*tiny_options, *kind(method)], f"The loss became {poison} at step 5 of 6, expected a finite number"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods.METHODS[method], "loss", loss)
        fails(go, options, said, str(run / "diverged.pt"), status=1)
    assert step(run, "diverged.pt") == 4 and step(run) == 3
    assert [row["epoch"] for row in rows(run)] == [1] and rows(run)[0]["loss"] > 0
    assert go([*options, "--resume"]) == 0
    assert equal_runs(run, unbroken(kind(method)))


@pytest.mark.parametrize("at", [3, slow(6)])
def test_a_gradient_that_is_not_finite_does_not_reach_a_checkpoint(at, tiny_options, tmp_path, fails, unbroken, during):
    """The loss is finite in the last step of an epoch, its gradient is not: the weights it makes are not saved."""
    from train.backbones import ResNet

    plain, run = ResNet.forward, tmp_path / "run"

    def act():
        patch.setattr(ResNet, "forward", lambda self, x: poison(plain(self, x)))

    def poison(features):
        features.register_hook(lambda gradient: gradient * float("nan"))
        return features

    with pytest.MonkeyPatch.context() as patch:
        during(at, act)
        fails(go, tiny_options, f"step {at} of 6", str(run / "diverged.pt"), status=1)
    during()
    assert step(run) == at - 3
    assert go([*tiny_options, "--resume"]) == 0
    assert equal_runs(run, unbroken())
