"""Shared by the tests of the harness: the checkout on the path and a configuration small enough for seconds."""

import sys
from pathlib import Path

import pytest

# At the end, so that an installed cplearn_kernels goes before the checkout's sources; train exists only here.
ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))


@pytest.fixture(autouse=True)
def one_thread():
    """Work this small is slower on two threads, far slower when other processes want the cores; restored afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny():
    """Command line, but for the output directory, of a run of six small steps."""
    return [
        "--num-train",
        "96",
        "--num-test",
        "60",
        "--batch-size",
        "32",
        "--widths",
        "8",
        "8",
        "16",
        "--num-features",
        "16",
        "--num-codes",
        "64",
        "--epochs",
        "2",
        "--num-threads",
        "1",
    ]


@pytest.fixture
def tiny_options(tiny, tmp_path):
    """The same with the output directory `tmp_path / "run"`."""
    return ["--output-dir", str(tmp_path / "run"), *tiny]


@pytest.fixture
def tiny_config(tmp_path):
    """The resolved configuration of `tiny_options`; keywords replace fields."""
    from train.config import Config

    def make(**changes):
        fields = dict(
            output_dir=tmp_path / "run",
            num_train=96,
            num_test=60,
            batch_size=32,
            widths=(8, 8, 16),
            num_features=16,
            num_codes=64,
            epochs=2,
        )
        return Config(**(fields | changes)).resolved()

    return make
