"""The end of a run of many processes before its time: one says why, once, and all leave with its exit status."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

import torch.distributed as dist

GRACE = 5.0
"""Seconds that a process has to leave by itself once another has ended the run; it may hang in a collective of NCCL's,
which does not notice."""
POLL = 0.25
"""Seconds between looks for word of another's end."""
# Keys of the store that the processes share.
STATUS, SPEAKERS = "status", "speakers"


class Ending:
    """What one process knows and tells of the end of its run, by a store of torch.distributed.

    A thread looks for word of another's end. It has a connection of its own, made by `connect`: waiting for an answer
    holds a connection, and this process would then end when it need not wait any more. `hosts`: whether the store lives
    in this process, as it does where no torchrun has started it.
    """

    def __init__(self, connect: Callable[[], dist.Store], hosts: bool) -> None:
        self.store, self.hosts = connect(), hosts
        self.over = threading.Event()
        self.status: int | None = None
        threading.Thread(target=self._watch, args=(connect(),), daemon=True).start()

    def claim(self) -> bool:
        """Whether this process is the first that wants to say why the run ends."""
        try:
            return self.store.add(SPEAKERS, 1) == 1
        except RuntimeError:
            return True  # the store is gone with the process that hosted it, which then said nothing

    def tell(self, status: int) -> None:
        """Let the others leave with this exit status."""
        try:
            self.store.set(STATUS, str(status))
        except RuntimeError:
            pass  # they notice that connections are closed

    def wait(self, seconds: float) -> int | None:
        """The exit status that another process told; None if none does within so many seconds."""
        deadline = time.monotonic() + seconds
        while self.status is None and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.status

    def leave(self, status: int) -> NoReturn:
        """End this process.

        Not through the interpreter's end: the destructors of a group that lacks members may wait for them.
        """
        if self.hosts:
            time.sleep(4 * POLL)  # until all others have looked
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)

    def _watch(self, store: dist.Store) -> None:
        try:
            while not self.over.wait(POLL):
                if store.check([STATUS]):
                    self.status = int(store.get(STATUS))
                    if not self.over.wait(GRACE):
                        self.leave(self.status)
                    return
        except RuntimeError:
            pass  # the store is gone with the process that hosted it; the collectives notice that


def ignore_signals() -> None:
    """From here on nothing stops this process: torchrun ends the others once one has left, and its word counts."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
