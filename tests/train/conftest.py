"""Shared by the tests of the harness: a run small enough for seconds, and what is done to its steps."""

import pytest
from commands import fails, one_thread  # noqa: F401


@pytest.fixture(scope="session")
def tiny():
    """Command line, but for the output directory, of a run of six small steps."""
    return (
        "--num-train 96 --num-test 60 --batch-size 32 --widths 8 8 16 --num-features 16 --num-codes 64 --epochs 2 "
        "--num-threads 1"
    ).split()


@pytest.fixture
def tiny_options(tiny, tmp_path):
    """The same with the output directory `tmp_path / "run"`."""
    return ["--output-dir", str(tmp_path / "run"), *tiny]


@pytest.fixture
def tiny_config(tmp_path):
    """The resolved configuration of `tiny_options`; keywords replace fields."""
    from train.config import Config

    def make(**changes):
        counts = dict(num_train=96, num_test=60, batch_size=32, num_features=16, num_codes=64, epochs=2)
        return Config(**(dict(output_dir=tmp_path / "run", widths=(8, 8, 16)) | counts | changes)).resolved()

    return make


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, tiny):
    """`unbroken(options)`: the folder of a run with these options that nothing stopped; each is made once."""
    from running import go

    made = {}

    def run(options=()):
        if tuple(options) not in made:
            path = tmp_path_factory.mktemp("unbroken") / "run"
            assert go(["--output-dir", str(path), *tiny, *options]) == 0
            made[tuple(options)] = path
        return made[tuple(options)]

    return run


@pytest.fixture
def during(monkeypatch):
    """`during(k, act)`: call `act` inside the k-th step of the next run, before its update; `during()` ends that."""
    from train import loop

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
