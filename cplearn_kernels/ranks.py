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

import torch
import torch.distributed as dist

WORLD = "world"
# How often a waiting rank looks for reports of others. Without trouble nobody ever looks.
_POLL = datetime.timedelta(seconds=1)
# How long survivors wait for each other before they call a rank missing, beyond twice the call's time so far.
_ROLL_CALL_SECONDS = 5.0
_WARN_SECONDS = 30.0
_PREFIX = "cplearn_kernels"

_ranks: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


class RankFailure(RuntimeError):
    """A rank reported an error, died or did not come; the sentence names it. Raised on every rank that is left."""


def check_kind(process_group) -> None:
    """Raise unless `process_group` is None, "world" or a group that this process belongs to.

    Raises:
        TypeError, ValueError: something else, or a group that has no place for this process.
    """
    if process_group is None or (isinstance(process_group, str) and process_group == WORLD):
        return
    if isinstance(process_group, str):
        raise ValueError(f'process_group: expected a ProcessGroup, "world" or None, got {process_group!r}')
    if not dist.is_available():
        raise ValueError("process_group: this PyTorch was built without torch.distributed, expected None")
    if process_group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError("process_group: this process is no member of the group, expected one that it belongs to")
    if not isinstance(process_group, dist.ProcessGroup):
        raise TypeError(
            'process_group: expected a ProcessGroup, "world" or None (a DeviceMesh gives a group by get_group()), got '
            f"{type(process_group).__name__}"
        )


def check(process_group) -> None:
    """`check_kind`, and that the group can be used now.

    Raises:
        ValueError: torch.distributed is not initialised, or the group was destroyed.
    """
    check_kind(process_group)
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError(
            "process_group: torch.distributed is not initialised, expected init_process_group() before the first call"
        )
    if not isinstance(process_group, str):
        try:
            dist.get_rank(process_group)
        except (ValueError, RuntimeError):
            raise ValueError("process_group: the group was destroyed, expected one that is initialised") from None


def name_of(process_group) -> str:
    """What stands for a group in an operator's arguments: its name, "world" for the default group, "" for None."""
    if process_group is None or isinstance(process_group, str):
        return process_group or ""
    return process_group.group_name


def named(name: str) -> Ranks:
    """The ranks of the group that `name_of` named."""
    check(WORLD)
    if name == WORLD:
        return of(WORLD)
    try:
        return of(torch._C._distributed_c10d._resolve_process_group(name))
    except RuntimeError:
        raise ValueError(f"process_group: there is no group {name!r} (any more), expected an initialised one") from None


def of(process_group) -> Ranks:
    """The ranks of a group ("world": of the default group), the same object in every call."""
    if process_group == WORLD:
        process_group = dist.group.WORLD
    if process_group not in _ranks:
        _ranks[process_group] = Ranks(process_group)
    return _ranks[process_group]


class Ranks:
    """The ranks of one group; `rank` and `world` are this process's number in it and their count."""

    def __init__(self, group: dist.ProcessGroup):
        self._group = weakref.ref(group)
        self.rank, self.world = dist.get_rank(group), dist.get_world_size(group)
        self._store = dist.distributed_c10d._get_process_group_store(group)
        self._on_cpu = "cpu" in {device.type for device in group._device_types}
        self._calls, self._met, self._began = 0, False, time.monotonic()

    # ---- one call of a function, from its checks to its last collective ----

    @contextlib.contextmanager
    def call(self):
        """All of a function's work on this rank: an error in it is reported to the ranks that wait for this one."""
        self._calls += 1
        self._began = time.monotonic()
        try:
            yield
        except (RankFailure, Disagreement):
            raise
        except BaseException as error:
            self._report(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
            raise

    def compare(self, numbers: list[int], device: torch.device) -> list[list[int]]:
        """Every rank's `numbers`, by rank. The first comparison of a group waits for all ranks through the store.

        On CPU tensors if the group has a backend for them, since reading numbers off a GPU would wait for it.

        Raises:
            RankFailure: a rank has not come within the group's timeout, or has failed.
        """
        if not self._met:
            self._meet()
        if self._on_cpu:
            # Everyone to everyone, in one hop: gloo's all-gather is a ring and takes world - 1.
            everyones = self.exchange([[torch.tensor(numbers)]] * self.world)
        else:
            everyones = self.gather(torch.tensor(numbers, device=device))()
        return everyones.tolist()

    # ---- collectives ----

    def gather(self, tensor: torch.Tensor):
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

    def all_reduce(self, tensor: torch.Tensor, operation=None) -> torch.Tensor:
        """`tensor`, which may be overwritten, reduced over all ranks: summed, unless another operation is given."""
        operation = dist.ReduceOp.SUM if operation is None else operation
        device, tensor = tensor.device, self._movable(tensor)
        self._wait(dist.all_reduce(tensor, operation, group=self._group(), async_op=True), tensor)
        return tensor.to(device)

    def exchange(self, parts: list[list[torch.Tensor]]) -> torch.Tensor:
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
        if tensor.device.type == "cpu" or self._group()._get_backend(tensor.device).name() != "gloo":
            return tensor
        return tensor.cpu()

    # ---- trouble ----

    def _wait(self, work, tensor: torch.Tensor) -> None:
        if tensor.device.type != "cpu":
            work.wait()
            return
        while True:
            try:
                work.wait(_POLL)
                return
            except RuntimeError as error:
                if work.is_completed():
                    self._raise_lost(str(error))
                if self._store.check([self._key("failed")]):
                    self._raise_lost(None)

    def _key(self, *parts) -> str:
        return "/".join(map(str, (_PREFIX, self._calls, *parts)))

    def _meet(self) -> None:
        """Wait until every rank has made its first call; warn every now and then who has not."""
        self._store.set(f"{_PREFIX}/met/{self.rank}", "1")
        keys = {rank: f"{_PREFIX}/met/{rank}" for rank in range(self.world)}
        seconds, began = _timeout(self._group()), time.monotonic()
        while True:
            left = seconds - (time.monotonic() - began)
            try:
                self._store.wait(list(keys.values()), datetime.timedelta(seconds=max(0.01, min(_WARN_SECONDS, left))))
                break
            except RuntimeError:
                missing = [rank for rank, key in keys.items() if not self._store.check([key])]
                waited = time.monotonic() - began
                if self._store.check([self._key("failed")]):
                    self._raise_lost(None)
                if missing and waited >= seconds:
                    raise RankFailure(
                        f"{_listed(missing)} did not come to its first call with this process group within "
                        f"{waited:.0f} s (the group's timeout): it has died, is slow, or does not pass process_group"
                    ) from None
                if missing:
                    warnings.warn(
                        f"rank {self.rank} waits for {_listed(missing)}, which did not come to its first call with "
                        f"this process group in {waited:.0f} s; it will wait {seconds:.0f} s in all",
                        stacklevel=2,
                    )
        self._met = True

    def _report(self, message: str) -> None:
        # The error itself goes up in any case; a store that is gone must not hide it.
        with contextlib.suppress(RuntimeError):
            self._store.set(self._key("error", self.rank), message)
            self._store.set(self._key("present", self.rank), "1")
            self._store.set(self._key("failed"), "1")

    def _raise_lost(self, error: str | None) -> None:
        """Find out what happened and raise RankFailure; `error`: what a collective said on this rank."""
        found = "" if error is None else f"; on rank {self.rank} a collective ended with: {_gist(error)}"
        try:
            self._store.set(self._key("present", self.rank), "1")
            self._store.set(self._key("failed"), "1")
            patience = _ROLL_CALL_SECONDS + 2 * (time.monotonic() - self._began)
            deadline = time.monotonic() + patience
            missing = list(range(self.world))
            while missing and time.monotonic() < deadline:
                missing = [rank for rank in missing if not self._store.check([self._key("present", rank)])]
                if any(self._store.check([self._key("error", rank)]) for rank in range(self.world)):
                    break
                time.sleep(0.1)
            reports = [
                f"rank {rank} failed: {self._store.get(self._key('error', rank)).decode()}"
                for rank in range(self.world)
                if self._store.check([self._key("error", rank)])
            ]
        except RuntimeError as gone:
            raise RankFailure(
                f"the process group's store is gone ({_gist(str(gone))}): the process that holds it has died, "
                f"rank 0 unless torchrun holds it{found}"
            ) from None
        if reports:
            raise RankFailure("; ".join(reports) + found)
        if missing:
            raise RankFailure(
                f"{_listed(missing)} did not answer within {patience:.0f} s: it has died, or is not in this call{found}"
            )
        raise RankFailure(f"all {self.world} ranks answer, but a collective failed{found}")


class Disagreement(ValueError):
    """Ranks passed different arguments; raised on every rank, with the same sentence."""


def _gist(error: str) -> str:
    """The first sentence of a message of torch.distributed, without the source file it begins with."""
    return re.sub(r"^\[\S+:\d+\] ", "", error.splitlines()[0]).split(". ")[0]


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(-1).view(torch.uint8)


def _timeout(group) -> float:
    """The group's timeout in seconds."""
    options = getattr(group._get_backend(group._device_types[0]), "options", None)
    # Of a backend that does not tell: PyTorch's default.
    return (options._timeout if options else dist.default_pg_timeout).total_seconds()


def _listed(ranks: list[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else "ranks " + ", ".join(map(str, ranks))
