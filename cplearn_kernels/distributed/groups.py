"""Which process group a call means: checks of the argument, its name in an operator's arguments, and its ranks."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist

from ..options import Group
from ..validation import check_rows
from .collectives import Ranks

_T = TypeVar("_T")

WORLD: Final = "world"

_ranks: weakref.WeakKeyDictionary[dist.ProcessGroup, Ranks] = weakref.WeakKeyDictionary()


def check_kind(process_group: object) -> None:
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


def check_usable(process_group: Group) -> None:
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


def name_of(process_group: Group) -> str:
    """What stands for a group in an operator's arguments: its name, "world" for the default group, "" for None."""
    if process_group is None or isinstance(process_group, str):
        return process_group or ""
    return process_group.group_name


def named(name: str) -> Ranks:
    """The ranks of the group that `name_of` named."""
    check_usable(WORLD)
    if name == WORLD:
        return of(WORLD)
    try:
        group: Any = name
        return of(torch._C._distributed_c10d._resolve_process_group(group))
    except RuntimeError:
        raise ValueError(f"process_group: there is no group {name!r} (any more), expected an initialised one") from None


def of(process_group: Group) -> Ranks:
    """The ranks of a group ("world": of the default group), the same object in every call."""
    group: Any = dist.group.WORLD if process_group == WORLD else process_group
    if group not in _ranks:
        _ranks[group] = Ranks(group)
    return _ranks[group]


def checked(check: Callable[[], _T], process_group: Group, rows: str) -> _T:
    """What `check()` returns; with a process group its error is reported to the ranks that wait for this one."""
    if process_group is None or torch.compiler.is_compiling():
        check_rows(rows)
        return check()
    check_usable(process_group)
    try:
        check_rows(rows)
        return check()
    except BaseException:
        with of(process_group).call():
            raise
