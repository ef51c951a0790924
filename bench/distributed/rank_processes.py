"""Processes that take part in one sharded loss, for the benchmarks: started, timed, their traffic counted.

A task is a dictionary: "world", "cases" (each {"N", "f", "c", "dtype"}), "steps", "warmup", "backend", and for a
network of its own "rate" (bits per second or None) and "delay" (seconds). Its result: for each case the seconds of each
step on each rank, the bytes and packets that each rank sent in all counted steps, the bytes that it handed to
torch.distributed (by collective), and the seconds of the parts of a call.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import tempfile
import time
import traceback
from typing import Any

import torch
import torch.multiprocessing as multiprocessing

from bench import distributed_network as network
from bench.distributed_parts import Parts

TEMPERATURE = 0.3


def inputs(case: dict[str, Any], rank: int, world: int) -> tuple[list[torch.Tensor], Any]:
    """This rank's rows of a case's random batch, which does not depend on the number of ranks, and the dictionary."""
    from cplearn_kernels import HadamardDictionary

    generator = torch.Generator().manual_seed(0)
    views = torch.nn.functional.normalize(torch.randn(2, case["N"], case["f"], generator=generator), dim=2)
    own = [view.tensor_split(world)[rank].to(getattr(torch, case["dtype"])) for view in views]
    return [view.clone().requires_grad_() for view in own], HadamardDictionary(case["f"], case["c"])


def step(views, dictionary, backend: str | None, group=None) -> float:
    """One loss with its gradient; the loss."""
    from cplearn_kernels import cplearn_loss

    loss = cplearn_loss(*views, dictionary, temperature=TEMPERATURE, process_group=group, backend=backend)
    torch.autograd.grad(loss, views)
    return loss.item()


class Group:
    """`world` processes in one gloo group, each with one thread; with `wires`, in namespaces joined by that network."""

    def __init__(self, world: int, wires: network.Network | None = None, rate: float | None = None):
        self._folder = tempfile.TemporaryDirectory()
        context = multiprocessing.get_context("spawn")
        self.world, self._pipes, self._processes = world, [], []
        for rank in range(world):
            here, there = context.Pipe()
            store = os.path.join(self._folder.name, "store")
            arguments = (rank, world, store, wires is not None, rate, there)
            process = context.Process(target=_work, args=arguments, daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)
        try:
            if wires is not None:
                for rank, process in enumerate(self._processes):
                    self._answer(rank)  # it has entered its namespace
                    wires.connect(rank, process.pid)
                wires.start()
                for pipe in self._pipes:
                    pipe.send(None)
            for rank in range(world):
                self._answer(rank)
        except BaseException:
            self.close()
            raise

    def start(self, *request) -> None:
        """Sends `(kind, ...)` to every rank."""
        for pipe in self._pipes:
            pipe.send(request)

    def results(self) -> list[Any]:
        """What each rank answers."""
        return [self._answer(rank) for rank in range(self.world)]

    def run(self, *request) -> list[Any]:
        self.start(*request)
        return self.results()

    def _answer(self, rank: int, seconds: float = 600) -> Any:
        if not self._pipes[rank].poll(seconds):
            raise RuntimeError(f"rank {rank} did not answer within {seconds} s")
        good, value = self._pipes[rank].recv()
        if not good:
            raise RuntimeError(f"rank {rank} of {self.world}: {value}")
        return value

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._folder.cleanup()


def _work(rank: int, world: int, store: str, in_namespace: bool, rate: float | None, pipe) -> None:
    try:
        if in_namespace:
            network.enter()
            pipe.send((True, None))
            pipe.recv()
            network.configure(rank, rate)
            os.environ["GLOO_SOCKET_IFNAME"] = "eth0"
        import torch.distributed as dist

        torch.set_num_threads(1)
        dist.init_process_group("gloo", rank=rank, world_size=world, init_method=f"file://{store}",
                                timeout=datetime.timedelta(seconds=300))  # fmt: skip
        pipe.send((True, None))
        held: dict[str, Any] = {}
        while True:
            kind, *arguments = pipe.recv()
            pipe.send((True, _REQUESTS[kind](held, rank, world, *arguments)))
    except EOFError:
        pass
    except BaseException:
        pipe.send((False, traceback.format_exc()))


def _take(held, rank: int, world: int, case: dict[str, Any], backend: str | None, sharded: bool) -> None:
    """Makes the inputs of a case; `sharded`: of this rank's rows, else of all rows, for a process on its own."""
    held["backend"], held["group"] = backend, "world" if sharded else None
    held["views"], held["dictionary"] = inputs(case, rank, world) if sharded else inputs(case, 0, 1)


def _timed(held, rank: int, world: int, steps: int) -> list[float]:
    if held["group"]:
        # The request reaches one rank before the other, and the steps of a training find both at work.
        torch.distributed.barrier()
    seconds, before = [], time.process_time()
    for _ in range(steps):
        began = time.perf_counter()
        held["loss"] = step(held["views"], held["dictionary"], held["backend"], held["group"])
        seconds.append(time.perf_counter() - began)
    held["processor"] = (time.process_time() - before) / steps
    return seconds


def _processor(held, rank: int, world: int) -> float:
    """Seconds on the processor per step of the last `timed`: other people's load hardly changes them."""
    return held["processor"]


def _counted(held, rank: int, world: int, steps: int, on_wire: bool) -> dict[str, Any]:
    """Seconds, parts and traffic of `steps` steps, connections having been made before."""
    parts = Parts()
    # What a peer still has to take lies in a buffer and has not left the interface.
    time.sleep(0.1)
    before = network.sent() if on_wire else (0, 0)
    with parts.watched():
        seconds = _timed(held, rank, world, steps)
    time.sleep(0.1)
    after = network.sent() if on_wire else (0, 0)
    return {"seconds": seconds, "wire_bytes": after[0] - before[0], "wire_packets": after[1] - before[1],
            "handed_bytes": dict(parts.bytes), "parts": dict(parts.seconds), "loss": held["loss"]}  # fmt: skip


def _reached(held, rank: int, world: int, size: int = 1 << 20, times: int = 3) -> float:
    """Bits per second that a rank sends in an all-gather of `size` bytes from each: what TCP makes of the link."""
    import torch.distributed as dist

    part, whole = torch.zeros(size, dtype=torch.uint8), torch.empty(world * size, dtype=torch.uint8)
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(whole, part)
    began = time.perf_counter()
    for _ in range(times):
        gather(whole, part)
    return 8 * times * (world - 1) * size / (time.perf_counter() - began)


_REQUESTS = {"take": _take, "timed": _timed, "processor": _processor, "counted": _counted, "reached": _reached}


def run_task(task: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry per case: {"case", "ranks": [what each counted], "reached": bits per second, or None without a rate}.

    Called inside a namespace, see `measure`.
    """
    group = Group(task["world"], network.Network(task["delay"]), task["rate"])
    try:
        found, reached = [], min(group.run("reached")) if task["rate"] else None
        for case in task["cases"]:
            group.run("take", case, task["backend"], True)
            group.run("timed", task["warmup"])
            found.append({"case": case, "ranks": group.run("counted", task["steps"], True), "reached": reached})
        return found
    finally:
        group.close()


def measure(cases, *, world: int, steps: int, backend: str | None, rate: float | None = None, delay: float = 0.0,
            warmup: int = 2) -> list[dict[str, Any]]:  # fmt: skip
    """`run_task` in a network of its own. NetworkError where there can be none."""
    task = {"world": world, "cases": cases, "steps": steps, "warmup": warmup, "backend": backend, "rate": rate,
            "delay": delay}  # fmt: skip
    process = network.inside(["-m", "bench.distributed_network", json.dumps(task)], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True)  # fmt: skip
    output, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the ranks of {task} failed:\n{errors}")
    return json.loads(output.splitlines()[-1])


def measure_by_hooks(cases, *, world: int, steps: int, backend: str | None, warmup: int = 2) -> list[dict[str, Any]]:
    """The same without a network of its own: only what was handed to torch.distributed is counted."""
    group = Group(world)
    try:
        found = []
        for case in cases:
            group.run("take", case, backend, True)
            group.run("timed", warmup)
            found.append({"case": case, "ranks": group.run("counted", steps, False)})
        return found
    finally:
        group.close()
