"""Many processes under torchrun: who this one is, and how all of them go on, stop and fail together."""

from __future__ import annotations

import os
import re
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cplearn_kernels.errors import RankFailure
from train.config import Config
from train.distributed.ending import Ending, ignore_signals
from train.distributed.sync_batch_norm import SyncBatchNorm
from train.errors import Diverged, InputError

TIMEOUT = timedelta(minutes=10)
"""Longest wait for the other processes, at the start (for rank 0's download, too) and in every step."""
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells a process in its environment."""
BROKEN = re.compile("gloo|nccl|pair closure|connection|time[d ]*out", re.IGNORECASE)
"""What errors of a collective that lacks a process say; they are plain RuntimeErrors."""


class Elsewhere(Exception):
    """Another process ends this run and says why; this one leaves without a word."""


class Lost(Exception):
    """Another process is gone or does not answer (exit status 1)."""

    exit_status = 1


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them; with one process every method does nothing.

    Process 0 alone writes, prints, evaluates and reports. Small messages go through gloo on the CPU; gradients and
    embeddings go where the tensors are.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    ending: Ending | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    @property
    def together(self) -> bool:
        """Whether there are others, and they have not parted yet."""
        return self.world > 1 and not self.ending.over.is_set()

    def check(self, config: Config) -> None:
        """InputError if a resolved configuration cannot be shared by so many processes."""
        if config.batch_size % self.world:
            raise InputError(
                f"--batch-size was {config.batch_size}, expected a multiple of the {self.world} processes "
                f"that share it."
            )
        device = torch.device(config.device)
        if self.world == 1 or device.type != "cuda":
            return
        if device.index is not None:
            raise InputError(
                f"--device was {config.device}, expected cuda with {self.world} processes, each of which "
                f"takes a GPU of its own, or cpu."
            )
        if self.local_rank >= torch.cuda.device_count():
            raise InputError(
                f"--device was {config.device}, expected a GPU for each process of this machine, which "
                f"has {torch.cuda.device_count()} (or --device cpu)."
            )

    def rows(self, batch_size: int) -> slice:
        """This process's part of every batch."""
        share = batch_size // self.world
        return slice(self.rank * share, (self.rank + 1) * share)

    def synchronised(self, method: nn.Module, device: str) -> nn.Module:
        """The method with batch norms over the whole batch; parameters, buffers and their names stay the same."""
        if self.world == 1:
            return method
        # torch's takes no CPU tensors.
        kind = nn.SyncBatchNorm if torch.device(device).type == "cuda" else SyncBatchNorm
        return kind.convert_sync_batchnorm(method)

    def wrap(self, encoder: nn.Module) -> nn.Module:
        """The encoder with gradients that are averaged over the processes; it takes one call for each backward."""
        return DistributedDataParallel(encoder) if self.world > 1 else encoder

    def broadcast(self, content: bytes | None) -> bytes:
        """Process 0's bytes, in every process."""
        if self.world == 1:
            return content
        size = torch.tensor(len(content) if self.first else 0)
        dist.broadcast(size, 0)
        data = torch.frombuffer(bytearray(content) if self.first else bytearray(int(size)), dtype=torch.uint8)
        dist.broadcast(data, 0)
        return data.numpy().tobytes()

    def stop_signal(self, requests: list[int]) -> int:
        """The signal that asked any process to stop, the same number in all of them; 0 for none."""
        mine = requests[0] if requests else 0
        if self.world == 1:
            return mine
        number = torch.tensor(mine)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return int(number)

    @contextmanager
    def agreement(self) -> Iterator[None]:
        """All processes leave the block well or none does: the lowest rank that fails raises, the rest say nothing."""
        if self.world == 1:
            yield
            return
        failure = None
        try:
            yield
        except (InputError, Diverged) as error:
            failure = error
        lowest = torch.tensor(self.rank if failure else self.world)
        dist.all_reduce(lowest, dist.ReduceOp.MIN)
        if int(lowest) == self.rank:
            raise failure
        if int(lowest) < self.world:
            raise Elsewhere

    @contextmanager
    def first_goes_ahead(self) -> Iterator[None]:
        """Process 0 goes through the block, then the others: it is the one to find fault, and what it fetches is there.

        The block must not hold a collective.
        """
        if not self.first:
            with self.agreement():
                pass
        with self.agreement():
            yield
        if self.first:
            with self.agreement():
                pass

    def check_same(self, images: Tensor) -> None:
        """InputError in a process whose training images, uint8, are not those of process 0; all must call it."""
        if self.world > 1:
            digest = b"%d images, CRC %08x" % (len(images), zlib.crc32(images.cpu().numpy()))
            if digest != (expected := self.broadcast(digest)):
                raise InputError(
                    f"The training images were {digest.decode()}, expected those of rank 0 "
                    f"({expected.decode()}) in the same order."
                )

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Names what happens to a run when a process is gone: raises Lost, or Elsewhere if that one has spoken."""
        try:
            yield
        except RuntimeError as error:
            if not (self.together and (isinstance(error, RankFailure) or BROKEN.search(str(error)))):
                raise
            # A sentence takes no longer than torchrun's patience, and a process that says one may still be about it.
            ignore_signals()
            if self.ending.wait(2.0) is not None:
                raise Elsewhere from None
            reason = str(error).split("] ", 1)[-1].split(". ")[0]
            raise Lost(
                f"Another process is gone or has not answered for {TIMEOUT.total_seconds():.0f} s ({reason}), "
                f"expected all {self.world} to go on; what was saved is whole, and --resume goes on from "
                f"it."
            ) from None

    def part(self) -> None:
        """Dissolve the group; from here on every process is alone."""
        if self.together:
            self.ending.over.set()
            dist.destroy_process_group()

    def end(self, status: int, sentence: str) -> int:
        """Print why the run ends, once for all processes, and return the exit status; the other processes end, too."""
        if not self.together:
            print(sentence, file=sys.stderr)
            return status
        ignore_signals()
        if not self.ending.claim():
            return self.end_quietly()
        print(sentence, file=sys.stderr)
        self.ending.tell(status)
        self.ending.leave(status)

    def end_quietly(self) -> int:
        """End with the exit status of the process that says why, once it has; with 1 if it never does."""
        ignore_signals()
        self.ending.leave(self.ending.wait(TIMEOUT.total_seconds()) or 1)


ALONE = Processes()


def join() -> Processes:
    """The processes that torchrun has started, joined into a group; ALONE if it has not, or only one.

    Each takes the GPU of its local rank as the device "cuda". Raises InputError for an environment that is not
    torchrun's, Lost if the others do not come.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return ALONE
    given = {name: os.environ.get(name) for name in VARIABLES}
    try:
        rank, local_rank, world, port = (
            int(given[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")
        )
        host = given["MASTER_ADDR"] + ""
    except (TypeError, ValueError):
        raise InputError(
            f"The environment had {given}, expected WORLD_SIZE alone unset, or all of them as torchrun sets them."
        ) from None
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if local_rank < gpus:
        torch.cuda.set_device(local_rank)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=TIMEOUT)
        # Another attempt of torchrun's must not read what was told in an earlier one.
        attempt = f"train/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        ending = Ending(
            lambda: dist.PrefixStore(attempt, dist.TCPStore(host, port, is_master=False, wait_for_workers=False)),
            hosts=rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
        )
    except RuntimeError as error:
        raise Lost(
            f"The {world} processes did not come together within {TIMEOUT.total_seconds():.0f} s "
            f"({str(error).splitlines()[0]}), expected all of them at {host}:{port}."
        ) from None
    return Processes(rank, world, local_rank, ending)


def launcher() -> list[str]:
    """The words of a command line that start this many processes on a machine like this one."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return ["python", "-m", "train"]
    here = os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])
    return ["torchrun", "--nproc-per-node", here, "-m", "train"]


def is_first() -> bool:
    """Whether this is process 0, as far as the environment says: for what comes before the group."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"
