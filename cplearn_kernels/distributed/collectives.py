"""The ranks of a process group: collectives that name the rank which fails instead of hanging.

Everything that is sent goes through torch.distributed (gloo, NCCL). What is added here is that a rank which waits looks
now and then whether another one has reported an error through the group's store, and that after a broken connection the
survivors find out who is missing. Waiting for tensors on a GPU is left to the device: there NCCL's watchdog ends a
process whose partner is gone after the group's timeout.
"""

from __future__ import annotations

import contextlib
import datetime
import re
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from ..errors import Disagreement, RankFailure

# How often a waiting rank looks for reports of others. Without trouble nobody ever looks.
_POLL = datetime.timedelta(seconds=1)
# How long survivors wait for each other before they call a rank missing, beyond twice their own work in the call.
_ROLL_CALL_SECONDS = 5.0
_WARN_SECONDS = 30.0
_PREFIX = "cplearn_kernels"


class Ranks:
    """The ranks of one group.

    Attributes:
        rank, world: this process's number in the group, and their count.
        names: the ranks' numbers among all processes, by which messages call them.
    """

    def __init__(self, group: dist.ProcessGroup):
        self._group = weakref.ref(group)
        self.rank, self.world = dist.get_rank(group), dist.get_world_size(group)
        self._store = dist.distributed_c10d._get_process_group_store(group)
        self._on_cpu = "cpu" in {device.type for device in group._device_types}
        self.names = dist.get_process_group_ranks(group)
        # Calls that this process has entered, and what made one of them fail after it had begun to send.
        self._calls = 0
        self._broken: str | None = None
        self._met, self._sending = False, False
        self._began, self._waited = 0.0, 0.0

    # ---- one call of a function, from its checks to its last collective ----

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """All of a function's work on this rank: an error in it is reported to the ranks that wait for this one.

        Ranks that all fail before anything is sent, as in a check, stay in step. After any other failure the group is
        of no more use: messages of the call that failed may still be under way in it.

        Raises:
            RankFailure: an earlier call has failed that way.
        """
        self._calls += 1
        self._began, self._waited, self._sending = time.monotonic(), 0.0, False
        if self._broken:
            sentence = f"an earlier call with this process group failed ({self._broken}), expected a new group"
            self._report(sentence)
            raise RankFailure(sentence)
        try:
            yield
        except Disagreement:
            raise
        except RankFailure as error:
            self._broken = str(error)
            raise
        except BaseException as error:
            sentence = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            self._report(sentence)
            self._broken = f"rank {self.names[self.rank]} failed: {sentence}" if self._sending else None
            raise

    def compare(self, numbers: list[int], device: torch.device) -> list[tuple[int, ...]]:
        """Every rank's `numbers`, by rank. The first comparison of a group waits for all ranks through the store.

        On CPU tensors if the group has a backend for them, since reading numbers off a GPU would wait for it.

        Raises:
            RankFailure: a rank has not come within the group's timeout, has failed, or is in another call.
        """
        self._sending = True
        if not self._met:
            self._meet()
        numbers = [self._calls, *numbers]
        if self._on_cpu:
            # Everyone to everyone, in one hop: gloo's all-gather is a ring and takes world - 1.
            received = self.exchange([[torch.tensor(numbers)]] * self.world)
        else:
            received = self.gather(torch.tensor(numbers, device=device))()
        calls, *everyones = zip(*received.tolist(), strict=True)
        if len(set(calls)) > 1:
            self._raise_out_of_step(calls)
        return list(zip(*everyones, strict=True))

    # ---- collectives ----

    def gather(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Start to gather equal tensors of all ranks; the result, called, waits and gives `(world, *shape)`."""
        device, tensor = tensor.device, self._movable(tensor.contiguous())
        everything = tensor.new_empty((self.world, *tensor.shape))
        # Its name since PyTorch 2.13, which warns of the older one.
        start = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        # As bytes: every backend moves those, whatever it can do with half precision.
        work = start(_bytes(everything), _bytes(tensor), group=self._group(), async_op=True)

        def result() -> torch.Tensor:
            self._wait(work, tensor)
            return everything.to(device)

        return result

    def all_reduce(self, tensor: torch.Tensor, operation: Any = None) -> torch.Tensor:
        """`tensor`, which may be overwritten, reduced over all ranks: summed, unless another operation is given."""
        operation = dist.ReduceOp.SUM if operation is None else operation
        device, tensor = tensor.device, self._movable(tensor)
        self._wait(dist.all_reduce(tensor, operation, group=self._group(), async_op=True), tensor)
        return tensor.to(device)

    def exchange(self, parts: Sequence[Sequence[torch.Tensor]]) -> torch.Tensor:
        """What each rank has for this one, by rank and flat, `(world, numbers)`.

        `parts[r]`, one tensor after the other, goes to rank r. All ranks send this one as many numbers as it does.
        """
        sizes = [sum(tensor.numel() for tensor in part) for part in parts]
        everything = torch.cat([tensor.flatten() for part in parts for tensor in part])
        sent = self._movable(everything)
        received = sent.new_empty(self.world, sizes[self.rank])
        work = dist.all_to_all_single(
            received.flatten(), sent, [sizes[self.rank]] * self.world, sizes, group=self._group(), async_op=True
        )
        self._wait(work, sent)
        return received.to(everything.device)

    def _movable(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor`, on the CPU if it is on a GPU whose backend is gloo, which exchanges CPU tensors alone."""
        group: Any = self._group()
        if tensor.device.type == "cpu" or group._get_backend(tensor.device).name() != "gloo":
            return tensor
        return tensor.cpu()

    # ---- trouble ----

    def _wait(self, work: Any, tensor: torch.Tensor) -> None:
        if tensor.device.type != "cpu":
            work.wait()
            return
        began = time.monotonic()
        while True:
            try:
                work.wait(_POLL)
                self._waited += time.monotonic() - began
                return
            except RuntimeError as error:
                failed = work.is_completed()
                if failed or self._is_reported():
                    self._waited += time.monotonic() - began
                    self._raise_lost(str(error) if failed else None)

    def _is_reported(self) -> bool:
        """Whether a rank has reported this call as failed, or cannot any more: `_raise_lost` says which."""
        try:
            return self._store.check([self._key("failed")])
        except RuntimeError:  # the store is gone
            return True

    def _key(self, *parts: object, call: int | None = None) -> str:
        return "/".join(map(str, (_PREFIX, call or self._calls, *parts)))

    def _meet(self) -> None:
        """Wait until every rank has made its first call; warn every now and then who has not."""
        self._store.set(f"{_PREFIX}/met/{self.rank}", "1")
        keys = [f"{_PREFIX}/met/{rank}" for rank in range(self.world)]
        seconds, began, pause, warn_at = _timeout(self._group()), time.monotonic(), 0.001, _WARN_SECONDS
        while not self._store.check(keys):
            waited = self._waited = time.monotonic() - began
            if self._store.check([self._key("failed")]):
                self._raise_lost(None)
            if waited >= min(seconds, warn_at):
                missing = self._listed([rank for rank, key in enumerate(keys) if not self._store.check([key])])
                if waited >= seconds:
                    raise RankFailure(
                        f"{missing} did not come to its first call with this process group within {waited:.0f} s (the "
                        "group's timeout): it has died, is slow, or does not pass process_group"
                    )
                warn_at += _WARN_SECONDS
                warnings.warn(
                    f"rank {self.names[self.rank]} waits for {missing}, which did not come to its first call with this "
                    f"process group in {waited:.0f} s; it will wait {seconds:.0f} s in all",
                    stacklevel=2,
                )
            time.sleep(pause)
            pause = min(2 * pause, _POLL.total_seconds())
        self._met = True

    def _report(self, message: str) -> None:
        # The error itself goes up in any case; a store that is gone must not hide it.
        with contextlib.suppress(RuntimeError):
            self._store.set(self._key("error", self.rank), message)
            self._store.set(self._key("present", self.rank), "1")
            self._store.set(self._key("failed"), "1")

    def _reports(self, call: int | None = None) -> list[str]:
        """What ranks have reported of a call of theirs, this one unless another is given."""
        keys = {self.names[rank]: self._key("error", rank, call=call) for rank in range(self.world)}
        return [
            f"rank {name} failed: {self._store.get(key).decode()}"
            for name, key in keys.items()
            if self._store.check([key])
        ]

    def _raise_lost(self, error: str | None) -> NoReturn:
        """Find out what happened and raise RankFailure; `error`: what a collective said on this rank."""
        found = "" if error is None else f"; on rank {self.names[self.rank]} a collective ended with: {_gist(error)}"
        try:
            self._store.set(self._key("present", self.rank), "1")
            self._store.set(self._key("failed"), "1")
            # Others may be at their part of the work, for about as long as this rank was.
            patience = _ROLL_CALL_SECONDS + 2 * max(0.0, time.monotonic() - self._began - self._waited)
            deadline = time.monotonic() + patience
            missing, reports = list(range(self.world)), self._reports()
            while missing and not reports and time.monotonic() < deadline:
                time.sleep(0.1)
                missing = [rank for rank in missing if not self._store.check([self._key("present", rank)])]
                reports = self._reports()
        except RuntimeError as gone:
            raise RankFailure(
                f"the process group's store is gone ({_gist(str(gone))}): the process that holds it has died, rank 0 "
                f"unless torchrun holds it{found}"
            ) from None
        if reports:
            raise RankFailure("; ".join(reports) + found)
        if missing:
            raise RankFailure(
                f"{self._listed(missing)} did not answer within {patience:.0f} s: it has died, or is not in this call"
                f"{found}"
            )
        raise RankFailure(f"all {self.world} ranks answer, but a collective failed{found}")

    def _raise_out_of_step(self, calls: tuple[int, ...]) -> NoReturn:
        """The ranks' messages belong to different calls: some rank has failed in one and gone on, or made one alone."""
        where = ", ".join(f"rank {name} in its call {call}" for name, call in zip(self.names, calls, strict=True))
        reports = "".join(f"; {report}" for report in self._reports(min(calls)))
        raise RankFailure(f"the ranks are in different calls with this process group, {where}{reports}")

    def _listed(self, ranks: list[int]) -> str:
        names = [str(self.names[rank]) for rank in ranks]
        return f"rank {names[0]}" if len(names) == 1 else "ranks " + ", ".join(names)


def _gist(error: str) -> str:
    """The first sentence of a message of torch.distributed, without the source file it begins with."""
    return re.sub(r"^\[\S+:\d+\] ", "", error.splitlines()[0]).split(". ")[0]


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(-1).view(torch.uint8)


def _timeout(group: Any) -> float:
    """The group's timeout in seconds."""
    options = getattr(group._get_backend(group._device_types[0]), "options", None)
    # Of a backend that does not tell: PyTorch's default.
    return (options._timeout if options else dist.default_pg_timeout).total_seconds()
