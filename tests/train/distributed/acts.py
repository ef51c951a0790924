"""What tests do to the processes of a run before it begins; each act is importable, and called with the rank last."""

import json
import signal
import sys
import time
import zlib
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch

import train.__main__ as program
from train import checkpoint, evaluate, files, loop, report, run_folder
from train.distributed import ending, processes
from train.errors import InputError

# Eight steps of 64 images, two epochs. The prototypes thaw after step 1; the queue is full inside step 2.
OPTIONS = (
    "--num-train 256 --num-test 60 --batch-size 64 --widths 8 8 16 --num-features 16 --num-codes 64 --epochs 2 "
    "--projector-hidden 16 --num-prototypes 8 --queue-length 80 --freeze-prototypes 1 --num-threads 1"
).split()


def short():
    """End after training: few of these tests look at what comes then."""
    evaluate.judge = lambda *_: sys.exit(0)


def record(path, rank):
    """Write the metrics of every step, and a checksum of the weights behind it, to a file of this rank."""
    plain, rows = loop.train_step, []

    def train_step(encode, method, *rest):
        metrics = plain(encode, method, *rest)
        weights = b"".join(value.detach().numpy().tobytes() for value in method.state_dict().values())
        rows.append({**metrics, "weights": zlib.crc32(weights)})
        Path(f"{path}.{rank}").write_text(json.dumps(rows))
        return metrics

    loop.train_step = train_step
    short()


def in_float64(path, rank):
    """Everything in double precision, where what roundings become in a few steps stays below any mistake."""
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    record(path, rank)


def in_step(step, on, act, rank):
    """Call `act` on rank `on` (None: on all) at the beginning of a step; step 0 is before the run."""
    plain, calls = loop.train_step, []

    def train_step(*arguments):
        calls.append(1)
        if len(calls) == step and on in (rank, None):
            act()
        return plain(*arguments)

    loop.train_step = train_step
    short()
    if step == 0 and on in (rank, None):
        act()


def in_float64_step(step, on, act, path, rank):
    in_float64(path, rank)
    in_step(step, on, act, rank)


terminate = partial(signal.raise_signal, signal.SIGTERM)
die = partial(signal.raise_signal, signal.SIGKILL)


def interrupt():
    """As Ctrl-C may, from the terminal and from torchrun."""
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)


def full_disk():
    def save(*_, **__):
        raise OSError(28, "No space left on device")

    torch.save = save


def bad_data():
    def load(config):
        raise InputError("The data were bad, expected better ones.")

    program.load = load


def bug():
    raise ZeroDivisionError("a mistake")


def poison():
    plain = program.methods.METHODS["barlow_twins"].loss

    def loss(self, h1, h2):
        value, terms = plain(self, h1, h2)
        return value * float("nan"), terms

    program.methods.METHODS["barlow_twins"].loss = loss


def no_writing(rank):
    """Rank 1 must neither write a file nor evaluate; rank 0 does all of it."""
    report.write = lambda path, views: path.joinpath("report.html").write_text("report")
    if rank == 1:

        def refuse(*_):
            raise AssertionError("rank 1 writes or evaluates")

        files.write_atomically = checkpoint.save = run_folder.claim = evaluate.judge = report.write = refuse


def hang(rank):
    """Rank 1 stops answering; ten minutes are too long for a test."""
    processes.TIMEOUT, ending.GRACE = timedelta(seconds=2), 1.0
    in_step(3, 1, partial(time.sleep, 60), rank)


def steps(path, rank=0):
    """What `record` wrote."""
    return json.loads(Path(f"{path}.{rank}").read_text())
