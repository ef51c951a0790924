"""Many processes under torchrun: who this one is, and how all of them go on, stop and fail together."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from train.config import Config
from train.errors import Diverged, InputError
from train.sync_batch_norm import SyncBatchNorm

TIMEOUT = timedelta(minutes=10)
"""Longest wait for the other processes, at the start (for rank 0's download, too) and in every step."""
GRACE = 5.0
"""Seconds between the end of one process and the forced end of another that hangs in a collective, as NCCL's do."""
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells a process in its environment."""
# Keys of the store that the processes share.
ENDED, SPEAKERS = "ended", "speakers"


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
    store: dist.Store | None = None
    over: threading.Event = field(default_factory=threading.Event)
    """Set once the processes have parted."""

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    @property
    def together(self) -> bool:
        """Whether there are others, and they have not parted yet."""
        return self.world > 1 and not self.over.is_set()

    def check(self, config: Config) -> None:
        """InputError if a resolved configuration cannot be shared by so many processes."""
        if config.batch_size % self.world:
            raise InputError(f"--batch-size was {config.batch_size}, expected a multiple of the {self.world} processes "
                             f"that share it.")
        device = torch.device(config.device)
        if self.world == 1 or device.type != "cuda":
            return
        if device.index is not None:
            raise InputError(f"--device was {config.device}, expected cuda with {self.world} processes, each of which "
                             f"takes a GPU of its own, or cpu.")
        if self.local_rank >= torch.cuda.device_count():
            raise InputError(f"--device was {config.device}, expected a GPU for each process of this machine, which has "
                             f"{torch.cuda.device_count()} (or --device cpu).")

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
        # Every process computes the same running statistics, so they need not be sent.
        return DistributedDataParallel(encoder, broadcast_buffers=False) if self.world > 1 else encoder

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
                raise InputError(f"The training images were {digest.decode()}, expected those of rank 0 "
                                 f"({expected.decode()}) in the same order.")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Names what happens to a run when a process of it is gone: raises Lost, or Elsewhere if that one has spoken."""
        try:
            yield
        except RuntimeError as error:
            if not (self.together and re.search("gloo|nccl", str(error), re.IGNORECASE)):
                self._tell(1)
                raise
            # torchrun ends the others as soon as one is gone; a sentence on what happened takes no longer.
            _ignore_signals()
            if self._ended(3.0) is not None:
                raise Elsewhere from None
            reason = str(error).split("] ", 1)[-1].split(". ")[0]
            raise Lost(f"Another process is gone or has not answered for {TIMEOUT.total_seconds() / 60:.0f} minutes "
                       f"({reason}), expected all {self.world} to go on; what was saved is whole, and --resume goes on "
                       f"from it.") from None
        except (InputError, Diverged, Elsewhere):
            raise
        except Exception:
            self._tell(1)
            raise

    def part(self) -> None:
        """Dissolve the group; from here on every process is alone."""
        if self.together:
            self.over.set()
            dist.destroy_process_group()

    def end(self, status: int, sentence: str) -> int:
        """Print why the run ends, once for all processes, and return the exit status; the other processes end, too."""
        if not self.together:
            print(sentence, file=sys.stderr)
            return status
        _ignore_signals()
        try:
            if self.store.add(SPEAKERS, 1) > 1:
                return self.end_quietly()
        except RuntimeError:
            pass  # with the store the process that held it is gone, and who else speaks cannot be known
        print(sentence, file=sys.stderr)
        self._tell(status)
        return _leave(status)

    def end_quietly(self) -> int:
        """Wait for the sentence of the process that ends the run; its exit status."""
        _ignore_signals()
        status = self._ended(TIMEOUT.total_seconds())
        return _leave(1 if status is None else status)

    def _tell(self, status: int) -> None:
        if self.together:
            _ignore_signals()
            try:
                self.store.set(ENDED, str(status))
            except RuntimeError:
                pass  # they notice that connections are closed

    def _ended(self, seconds: float) -> int | None:
        """The exit status of the process that has ended the run, waiting so long for it; None if there is none."""
        deadline = time.monotonic() + seconds
        try:
            while not self.store.check([ENDED]):
                if time.monotonic() > deadline:
                    return None
                time.sleep(0.02)
            return int(self.store.get(ENDED))
        except RuntimeError:
            return None

    def watch(self) -> None:
        """End this process if another has ended and this one still waits for it in a collective that does not notice."""
        while not self.over.wait(1.0):
            status = self._ended(0.0)
            if status is not None and not self.over.wait(GRACE):
                _leave(status)


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
        rank, local_rank, world, port = (int(given[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE",
                                                                       "MASTER_PORT"))
        host = given["MASTER_ADDR"] + ""
    except (TypeError, ValueError):
        raise InputError(f"The environment had {given}, expected WORLD_SIZE alone unset, or all of them as torchrun "
                         f"sets them.") from None
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if local_rank < gpus:
        torch.cuda.set_device(local_rank)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo", timeout=TIMEOUT)
        # Connections of their own: the group's may be busy with a wait, and so may the watching thread's. Another
        # attempt of torchrun's must not read what was said in an earlier one.
        attempt = f"train/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        store, watched = (dist.PrefixStore(attempt, dist.TCPStore(host, port, is_master=False, wait_for_workers=False))
                          for _ in range(2))
    except RuntimeError as error:
        raise Lost(f"The {world} processes did not come together within {TIMEOUT.total_seconds() / 60:.0f} minutes "
                   f"({str(error).splitlines()[0]}), expected all of them at {host}:{port}.") from None
    over = threading.Event()
    threading.Thread(target=Processes(rank, world, local_rank, watched, over).watch, daemon=True).start()
    return Processes(rank, world, local_rank, store, over)


def launcher() -> list[str]:
    """The words of a command line that start this many processes on a machine like this one."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return ["python", "-m", "train"]
    here = os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])
    return ["torchrun", "--nproc-per-node", here, "-m", "train"]


def is_first() -> bool:
    """Whether this is process 0, as far as the environment says: for what comes before the group."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def _ignore_signals() -> None:
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


def _leave(status: int) -> int:
    # Not through the interpreter's end: destructors of a group that lacks members may wait for them.
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)
