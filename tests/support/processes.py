"""A pool of processes joined in groups, for tests over many ranks; started once, as torch takes seconds to import."""

from __future__ import annotations

import datetime
import os
import tempfile
import traceback

import torch.multiprocessing as multiprocessing


class Pool:
    """`world` processes of one default group; groups of the first 1, 2, … `world` ranks are at hand in each.

    `run(function, *arguments)` calls `function(group, *arguments)` in the processes that belong to the group, function
    being importable, and returns what each returns.
    """

    def __init__(self, world: int, timeout: float = 120, subgroups: bool = True, backend: str = "gloo"):
        self._folder = tempfile.TemporaryDirectory()
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for rank in range(world):
            here, there = context.Pipe()
            store = os.path.join(self._folder.name, "store")
            process = context.Process(target=_work, args=(rank, world, store, timeout, subgroups, backend, there))
            process.daemon = True
            process.start()
            self.pipes.append(here)
            self.processes.append(process)
            there.close()

    def run(self, function, *arguments, world: int | None = None, timeout: float = 120) -> list:
        """Results by rank; raises AssertionError with the tracebacks of the ranks that failed."""
        self.start(function, *arguments, world=world)
        return self.results(world, timeout)

    def start(self, function, *arguments, world: int | None = None) -> None:
        for pipe in self.pipes[: world or len(self.pipes)]:
            pipe.send((world or len(self.pipes), function, arguments))

    def results(self, world: int | None = None, timeout: float = 120) -> list:
        answers = [self.answer(rank, timeout) for rank in range(world or len(self.pipes))]
        failed = [f"rank {rank}:\n{text}" for rank, (good, text) in enumerate(answers) if not good]
        assert not failed, "\n".join(failed)
        return [value for _, value in answers]

    def answer(self, rank: int, timeout: float = 120) -> tuple[bool, object]:
        """(True, result) or (False, traceback) of one rank."""
        assert self.pipes[rank].poll(timeout), f"rank {rank} did not answer within {timeout} s"
        return self.pipes[rank].recv()

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        self._folder.cleanup()


def _work(rank, world, store, timeout, subgroups, backend, pipe):
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    seconds = datetime.timedelta(seconds=timeout)
    dist.init_process_group(backend, rank=rank, world_size=world, init_method=f"file://{store}", timeout=seconds)
    groups = {world: dist.group.WORLD}
    for size in range(1, world) if subgroups else ():
        groups[size] = dist.new_group(range(size), timeout=seconds)
    while True:
        size, function, arguments = pipe.recv()
        try:
            pipe.send((True, function(groups[size], *arguments)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
