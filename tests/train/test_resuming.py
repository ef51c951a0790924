"""What was stopped by a signal, a crash or a kill goes on as the run that nothing stopped, to the last bit."""

import itertools
import signal
import subprocess
import sys

import pytest
import running
import torch
from running import equal_runs, go, interrupt, kind, rows, step, terminate
from tiers import slow

import train.__main__ as program
from train import checkpoint


class Crash(BaseException):
    """Ends the program in the middle of a step: nothing catches it, and as after SIGKILL only the disk remembers."""


def crash():
    raise Crash


CASES = [("cplearn", "adam"), ("swav", "sgd")]
CASES += [slow(*case) for case in itertools.product(running.METHODS, running.OPTIMISERS) if case not in CASES]


@pytest.mark.parametrize("method, optimiser", CASES)
def test_a_run_stopped_and_then_killed_is_the_unbroken_one(method, optimiser, tiny_options, tmp_path, unbroken, during):
    """SIGTERM inside the first epoch, then a crash inside the second: from step 2 on, and again from step 3 on."""
    options, run = [*tiny_options, *kind(method, optimiser)], tmp_path / "run"
    during(2, terminate)
    assert go(options) == 143
    assert step(run) == 2 and rows(run) == []
    during(3, crash)
    with pytest.raises(Crash):
        go([*options, "--resume"])
    assert step(run) == 3
    during()
    assert go([*options, "--resume"]) == 0
    assert equal_runs(run, unbroken(kind(method, optimiser)))
    if method == "swav":
        assert int(checkpoint.load(run / "checkpoint.pt")["method"]["queued"]) == 40


@pytest.mark.parametrize("method, optimiser, forget", [
    ("cplearn", "adam", lambda content: content["optimiser"].update(state={})),
    slow("barlow_twins", "sgd", lambda content: content["optimiser"].update(state={})),
    slow("barlow_twins", "lars", lambda content: content["optimiser"].update(state={})),
    ("swav", "sgd", lambda content: content["method"]["queue"].zero_()),
    ("cplearn", "adam", lambda content: content["progress"].update(sums={})),
])  # fmt: skip
def test_what_a_resumed_run_forgets_is_seen(method, optimiser, forget, tiny_options, tmp_path, unbroken, during):
    """A resumed run without the optimiser's state, the queue or the sums is told from the unbroken one."""
    options, path = [*tiny_options, *kind(method, optimiser)], tmp_path / "run" / "checkpoint.pt"
    during(4, terminate)
    assert go(options) == 143
    during()
    content = checkpoint.load(path)
    forget(content)
    torch.save(content, path)
    assert go([*options, "--resume"]) == 0
    assert not equal_runs(tmp_path / "run", unbroken(kind(method, optimiser)))


@pytest.mark.parametrize("precision", ["float32", slow("bfloat16")])
def test_checkpoints_inside_an_epoch(precision, tiny_options, tmp_path, unbroken, during):
    """With one after every step, a crash in step 5 costs that step only; how often they come changes no number."""
    options = [*tiny_options, "--precision", precision]
    during(5, crash)
    with pytest.raises(Crash):
        go([*options, "--checkpoint-minutes", "1e-9"])
    assert step(tmp_path / "run") == 4
    during()
    assert go([*options, "--resume"]) == 0
    assert equal_runs(tmp_path / "run", unbroken(["--precision", precision]))


@pytest.mark.parametrize("stop_at, act, status", [
    (1, interrupt, 130),
    slow(2, terminate, 143),
    slow(3, interrupt, 130),
    slow(5, terminate, 143),
    (6, terminate, 143),
])  # fmt: skip
def test_any_step_is_a_good_place_to_stop(tiny_options, tmp_path, unbroken, during, stop_at, act, status):
    """The signal comes during the first step, inside an epoch, at its end, inside the last, at the very end."""
    during(stop_at, act)
    assert go(tiny_options) == status
    assert step(tmp_path / "run") == stop_at and len(rows(tmp_path / "run")) == stop_at // 3
    during()
    assert go([*tiny_options, "--resume"]) == 0
    assert equal_runs(tmp_path / "run", unbroken())


def test_a_signal_during_the_last_checkpoint_is_not_lost(tiny_options, tmp_path, monkeypatch):
    plain = checkpoint.save

    def save(path, config, progress, *rest):
        if progress.step == 6:
            terminate()
        plain(path, config, progress, *rest)

    monkeypatch.setattr(checkpoint, "save", save)
    assert go(tiny_options) == 143
    assert step(tmp_path / "run") == 6


def test_an_ignored_sigint_stays_ignored_and_sigterm_still_saves(tiny_options, tmp_path, unbroken, during):
    """As in a script's background, where Ctrl-C is meant for another program."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        during(2, interrupt)
        assert go(tiny_options) == 0
        assert equal_runs(tmp_path / "run", unbroken())
        during(2, lambda: (terminate(), interrupt()))
        assert go([*tiny_options, "--overwrite"]) == 143
        assert step(tmp_path / "run") == 2 and signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_metrics_behind_the_checkpoint_are_not_repeated(tiny_options, tmp_path):
    """As after a crash between the two files: the lines come again from the checkpoint."""
    assert go(tiny_options) == 0
    path = tmp_path / "run" / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"epoch": 3}\n')
    assert go([*tiny_options, "--resume"]) == 0
    assert path.read_text() == whole


@pytest.mark.slow
def test_a_kill_in_the_middle_of_writing_a_checkpoint(tiny_options, tmp_path, unbroken):
    """A real SIGKILL between a checkpoint's bytes and its rename: the old one is whole, the rest does no harm."""
    code = f"""
import os, signal
from train import checkpoint, files, __main__ as program
plain = checkpoint.save
def save(path, config, progress, *rest):
    if progress.step == 6:
        files.os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
    plain(path, config, progress, *rest)
checkpoint.save = save
program.main({tiny_options!r})
"""
    done = running.python(code)
    run = tmp_path / "run"
    assert done.returncode == -signal.SIGKILL, done.stderr
    # The metrics of the second epoch were on the disk already; its checkpoint is not.
    assert len(rows(run)) == 2 and (run / "checkpoint.pt.part").exists() and step(run) == 3
    assert go([*tiny_options, "--resume"]) == 0
    assert equal_runs(run, unbroken()) and not (run / "checkpoint.pt.part").exists()


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_run_is_left_alone_by_a_second_and_obeys_a_signal(
    signum, tiny_options, tmp_path, fails, monkeypatch, unbroken
):
    """Of two processes on one folder the second is refused at once; the first stops after the step of its signal."""
    code = f"""
import sys
from train import __main__ as program, loop
plain, calls = loop.train_step, []
def train_step(*arguments):
    calls.append(1)
    if len(calls) == 5:
        print("in step 5", flush=True)
        sys.stdin.readline()
    return plain(*arguments)
loop.train_step = train_step
sys.exit(program.main({tiny_options!r}))
"""
    pipes, run = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE), tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=running.ROOT, text=True, **pipes)
    try:
        assert any("in step 5" in line for line in process.stdout), process.communicate()[1]
        before = {path.name: path.read_bytes() for path in run.iterdir()}
        with monkeypatch.context() as patch:
            patch.setattr(program, "load", lambda *_: pytest.fail("data were loaded"))
            for more in ([], ["--resume"], ["--overwrite"]):
                fails(go, [*tiny_options, *more], "in use by another run", str(run))
        assert {path.name: path.read_bytes() for path in run.iterdir()} == before
        process.send_signal(signum)
        _, errors = process.communicate("go on\n", timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 128 + signum, errors
    assert (
        f"Stopped by {signum.name} after step 5 of 6" in errors and "--resume" in errors and "Traceback" not in errors
    )
    assert go([*tiny_options, "--resume"]) == 0
    assert equal_runs(run, unbroken())
