"""Starts `python -m train` in several processes, with torchrun's environment and something done to one of its steps."""

import functools
import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path

# A server imports torch and the harness once; every process of every test is a copy of it, which takes no time.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["train.__main__", "sklearn.cluster", "sklearn.datasets", "sklearn.model_selection"])


@functools.cache
def server_is_ready():
    """Its imports take seconds, many on a busy machine, which no limit of a test's should count."""
    first = context.Process(target=int)
    first.start()
    first.join()


class Ranks:
    """`world` processes of one run; use `wait` for their exit statuses, then `text(rank)` for what they printed.

    `act(rank)`, importable, is called in each before the run, to patch it.
    """

    def __init__(self, folder: Path, options: list[str], act=None, world: int = 2) -> None:
        server_is_ready()
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.processes = [
            context.Process(target=_work, args=(folder, options, act, rank, world, port)) for rank in range(world)
        ]
        for process in self.processes:
            process.start()

    def wait(self, seconds: float = 60) -> list[int]:
        """The exit statuses (-9: killed); a process that is still there after so many seconds fails the test."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        statuses = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
        assert None not in statuses, (statuses, [self.text(rank) for rank in range(len(statuses))])
        return statuses

    def text(self, rank: int) -> str:
        """What this rank printed, to stdout and stderr."""
        return (self.folder / f"rank{rank}.txt").read_text()

    @property
    def everything(self) -> str:
        """What all ranks printed."""
        return "".join(self.text(rank) for rank in range(len(self.processes)))


def _work(folder, options, act, rank, world, port):
    file = os.open(folder / f"rank{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    if world > 1:
        numbers = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=world, LOCAL_WORLD_SIZE=world, MASTER_PORT=port)
        os.environ.update({name: str(number) for name, number in numbers.items()})
        os.environ.update(MASTER_ADDR="127.0.0.1", OMP_NUM_THREADS="1")
    import torch

    import train.__main__ as program

    torch.set_num_threads(1)
    if act is not None:
        act(rank)
    sys.exit(program.main(options))
