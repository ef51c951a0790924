"""What a run survives: crashes, signals, full disks, a second run, a loss that is not finite; it goes on exactly."""

import resource
import signal
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch

import train.__main__ as program
from train import checkpoint, evaluate, loop, methods

ROOT = Path(__file__).resolve().parents[2]
# The prototypes thaw after step 1; the queue of 40 is full after step 2, in the middle of a batch.
SWAV = ["--num-prototypes", "8", "--queue-length", "40", "--freeze-prototypes", "1", "--projector-hidden", "16"]
METHODS = {"cplearn": [], "barlow_twins": ["--projector-hidden", "16"], "swav": SWAV}
OPTIMISERS = {"adam": [], "sgd": ["--lr", "0.05"], "lars": ["--lr", "0.2", "--weight-decay", "1e-4"]}
terminate = partial(signal.raise_signal, signal.SIGTERM)


class Crash(BaseException):
    """Ends the program in the middle of a step: nothing catches it, and as after SIGKILL only the disk remembers."""


class Trained(Exception):
    """Ends a run after its training: nothing here depends on what comes then."""


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


@pytest.fixture
def during(monkeypatch):
    """`during(k, act)`: call `act` inside the k-th step of the next run, before its update; `during()` ends that."""
    plain = loop.train_step

    def arrange(step=None, act=None):
        calls = []

        def train_step(*arguments):
            calls.append(1)
            if len(calls) == step:
                act()
            return plain(*arguments)

        monkeypatch.setattr(loop, "train_step", plain if step is None else train_step)

    return arrange


def crash():
    raise Crash


def kind(method, optimiser="adam"):
    return ["--method", method, "--optimiser", optimiser, *METHODS[method], *OPTIMISERS[optimiser]]


def state(path):
    """What a checkpoint says, but for the seconds and the places."""
    content = checkpoint.load(path)
    return {
        "method": content["method"],
        "optimiser": content["optimiser"],
        "progress": {name: value for name, value in content["progress"].items() if name != "seconds"},
    }


def same(a, b):
    """Whether two nested states agree to the last bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, list) else a == b


def equal_runs(one, other):
    """Same bytes of metrics, same weights, buffers, optimiser and progress."""
    return (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes() and same(
        state(one / "checkpoint.pt"), state(other / "checkpoint.pt")
    )


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, tiny):
    """`unbroken(options)`: the folder of a run with these options that nothing stopped; each is made once."""
    made = {}

    def run(options=()):
        if tuple(options) not in made:
            path = tmp_path_factory.mktemp("unbroken") / "run"
            assert go(["--output-dir", str(path), *tiny, *options]) == 0
            made[tuple(options)] = path
        return made[tuple(options)]

    return run


def fails(capsys, options, status, *words):
    """The command ends with this status and one sentence on stderr that has these words."""
    capsys.readouterr()
    assert go(options) == status
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and error.endswith(".\n"), error
    assert all(word in error for word in words), error


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize("method", METHODS)
def test_a_run_stopped_and_then_killed_is_the_unbroken_one(method, optimiser, tiny_options, tmp_path, unbroken, during):
    """SIGTERM inside the first epoch, then a crash inside the second: from step 2 on, and again from step 3 on."""
    options, run = [*tiny_options, *kind(method, optimiser)], tmp_path / "run"
    during(2, terminate)
    assert go(options) == 143
    assert state(run / "checkpoint.pt")["progress"]["step"] == 2 and (run / "metrics.jsonl").read_text() == ""
    during(3, crash)
    with pytest.raises(Crash):
        go([*options, "--resume"])
    assert state(run / "checkpoint.pt")["progress"]["step"] == 3
    during()
    assert go([*options, "--resume"]) == 0
    assert equal_runs(run, unbroken(kind(method, optimiser)))
    if method == "swav":
        assert int(checkpoint.load(run / "checkpoint.pt")["method"]["queued"]) == 40


@pytest.mark.parametrize(
    "method, optimiser, forget",
    [
        ("cplearn", "adam", lambda content: content["optimiser"].update(state={})),
        ("barlow_twins", "sgd", lambda content: content["optimiser"].update(state={})),
        ("barlow_twins", "lars", lambda content: content["optimiser"].update(state={})),
        ("swav", "sgd", lambda content: content["method"]["queue"].zero_()),
        ("cplearn", "adam", lambda content: content["progress"].update(sums={})),
    ],
)
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


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_checkpoints_inside_an_epoch(precision, tiny_options, tmp_path, unbroken, during):
    """With one after every step, a crash in step 5 costs that step only; how often they come changes no number."""
    options = [*tiny_options, "--precision", precision]
    during(5, crash)
    with pytest.raises(Crash):
        go([*options, "--checkpoint-minutes", "1e-9"])
    assert state(tmp_path / "run" / "checkpoint.pt")["progress"]["step"] == 4
    during()
    assert go([*options, "--resume"]) == 0
    assert equal_runs(tmp_path / "run", unbroken(["--precision", precision]))


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
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    run = tmp_path / "run"
    assert done.returncode == -signal.SIGKILL, done.stderr
    # The metrics of the second epoch were on the disk already; its checkpoint is not.
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    assert (run / "checkpoint.pt.part").exists() and state(run / "checkpoint.pt")["progress"]["step"] == 3
    assert go([*tiny_options, "--resume"]) == 0
    assert equal_runs(run, unbroken()) and not (run / "checkpoint.pt.part").exists()


def test_a_run_is_left_alone_by_a_second_and_ends_on_sigterm(tiny_options, tmp_path, capsys, monkeypatch, unbroken):
    """Of two processes on one folder the second is refused at once; the first stops after the step of its SIGTERM."""
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
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, text=True, **pipes)
    try:
        assert any("in step 5" in line for line in process.stdout), process.communicate()[1]
        before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
        with monkeypatch.context() as patch:
            patch.setattr(program, "load", lambda *_: pytest.fail("data were loaded"))
            for more in ([], ["--resume"], ["--overwrite"]):
                fails(capsys, [*tiny_options, *more], 2, "in use by another run", str(tmp_path / "run"))
        assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate("go on\n", timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 143, errors
    assert "Stopped by SIGTERM after step 5 of 6" in errors and "--resume" in errors and "Traceback" not in errors
    assert go([*tiny_options, "--resume"]) == 0
    assert equal_runs(tmp_path / "run", unbroken())


@contextmanager
def no_room():
    """torch.save finds the disk full."""

    def full(*_, **__):
        raise OSError(28, "No space left on device")

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
@pytest.mark.parametrize("step, stopped, kept, lost", [(2, False, 0, 3), (5, False, 3, 6), (5, True, 3, 5)])
def test_a_disk_that_fills_up_during_training(
    trouble, step, stopped, kept, lost, tiny_options, tmp_path, capsys, unbroken, during
):
    """Full in a step, found when the epoch ends or SIGTERM asks for a checkpoint: the one before is whole."""
    with trouble() as begin:
        during(step, lambda: (begin(), stopped and terminate()))
        fails(capsys, tiny_options, 2, f"Step {lost} could not be saved in {tmp_path / 'run'}", "room", "--resume")
    during()
    run = tmp_path / "run"
    assert not list(run.glob("*.part")) and state(run / "checkpoint.pt")["progress"]["step"] == kept
    assert go([*tiny_options, "--resume"]) == 0
    assert equal_runs(run, unbroken())


def test_a_folder_that_vanishes_during_training(tiny_options, tmp_path, capsys, during):
    during(2, lambda: (tmp_path / "run").rename(tmp_path / "elsewhere"))
    fails(capsys, tiny_options, 2, str(tmp_path / "run"), "Step 3 could not be saved")
    assert state(tmp_path / "elsewhere" / "checkpoint.pt")["progress"]["step"] == 0


@pytest.mark.parametrize("where", ["file/run", "/proc/run", "/proc/self/run"])
def test_a_folder_that_cannot_be_written_is_said_before_data_are_loaded(where, tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(program, "load", lambda *_: pytest.fail("data were loaded"))
    (tmp_path / "file").write_text("")
    path = str(tmp_path / where)
    fails(capsys, ["--output-dir", path, *tiny], 2, path, "expected a folder that can be written")


@pytest.mark.parametrize("method, poison", [("cplearn", "nan"), ("barlow_twins", "inf"), ("swav", "nan")])
def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_what_was_before(
    method, poison, tiny_options, tmp_path, capsys, unbroken
):
    plain, calls, run = methods.METHODS[method].loss, [], tmp_path / "run"

    def loss(self, h1, h2):
        if len(h1) == 32:  # a training step, not the trial of two rows
            calls.append(1)
        value, terms = plain(self, h1, h2)
        return value * float(poison) if len(calls) == 5 else value, terms

    options = [*tiny_options, *kind(method)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods.METHODS[method], "loss", loss)
        fails(
            capsys,
            options,
            1,
            f"The loss became {poison} at step 5 of 6, expected a finite number",
            str(run / "diverged.pt"),
        )
    assert state(run / "diverged.pt")["progress"]["step"] == 4
    assert state(run / "checkpoint.pt")["progress"]["step"] == 3
    assert go([*options, "--resume"]) == 0
    assert equal_runs(run, unbroken(kind(method)))


@pytest.mark.parametrize("step", [3, 6])
def test_a_gradient_that_is_not_finite_does_not_reach_a_checkpoint(
    step, tiny_options, tmp_path, capsys, unbroken, during
):
    """The loss is finite in the last step of an epoch, its gradient is not: the weights it makes are not saved."""
    from train.backbones import ResNet

    plain = ResNet.forward

    def act():
        patch.setattr(ResNet, "forward", lambda self, x: poison(plain(self, x)))

    def poison(features):
        features.register_hook(lambda gradient: gradient * float("nan"))
        return features

    with pytest.MonkeyPatch.context() as patch:
        during(step, act)
        fails(capsys, tiny_options, 1, f"step {step} of 6", str(tmp_path / "run" / "diverged.pt"))
    during()
    assert state(tmp_path / "run" / "checkpoint.pt")["progress"]["step"] == step - 3
    assert go([*tiny_options, "--resume"]) == 0
    assert equal_runs(tmp_path / "run", unbroken())
