"""The backends by name: which can run here, which fits a call, and why the others do not."""

from __future__ import annotations

import dataclasses
import types

import torch

from ..dictionary import Dictionary
from . import self_check
from .chunked import functions as chunked
from .cpu import functions as cpu
from .cuda import architectures
from .cuda import functions as cuda
from .triton import functions as triton

# Fastest first: the order in which a call without a named backend tries them.
_IMPLEMENTED = {module.NAME: module for module in (cpu, cuda, triton, chunked)}
NAMES = ("reference", *_IMPLEMENTED)


@dataclasses.dataclass(frozen=True)
class BackendInfo:
    """What one backend can do on this machine.

    Attributes:
        name: the name that `backend=` takes.
        available: whether it can run here.
        reason: why it cannot, or what it is.
        functions, dictionaries, dtypes: what it serves (empty when it cannot run).
    """

    name: str
    available: bool
    reason: str
    functions: tuple[str, ...] = ()
    dictionaries: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()

    def __str__(self) -> str:
        state = "runs here" if self.available else "cannot run"
        lines = [f"{self.name}: {state} ({self.reason})"]
        if self.available:
            lines += [
                f"    functions:    {', '.join(self.functions)}",
                f"    dictionaries: {', '.join(self.dictionaries)}",
                f"    dtypes:       {', '.join(self.dtypes)}",
            ]
        return "\n".join(lines)


class Backends(dict):
    """Name -> `BackendInfo`; prints as a readable list."""

    def __str__(self) -> str:
        return "\n".join(str(info) for info in self.values())

    __repr__ = __str__


def backends() -> Backends:
    """What can run on this machine, and why the rest cannot.

    Returns:
        A dict from backend name to `BackendInfo`, which prints as a list.

    Example:
        >>> cplearn_kernels.backends()["torch"].available
        True
    """
    everything = chunked.FUNCTIONS, chunked.DICTIONARIES, _dtype_names(chunked.DTYPES)
    found = Backends(reference=BackendInfo("reference", True, "plain PyTorch on all n x c logits", *everything))
    for name, module in _IMPLEMENTED.items():
        reason = module.unavailable()
        if reason is None:
            found[name] = BackendInfo(
                name, True, module.description(), module.FUNCTIONS, module.DICTIONARIES, _dtype_names(module.DTYPES)
            )
        else:
            found[name] = BackendInfo(name, False, reason)
    return found


def check_name(name: str | None) -> None:
    """Raise ValueError unless `name` is None or a backend of this library."""
    if name is not None and name not in NAMES:
        raise ValueError(f"backend: expected None or one of {NAMES}, got {name!r}")


def select(name: str | None, function: str, dictionary: Dictionary, h: torch.Tensor) -> types.ModuleType:
    """The module that serves this call: the named one, or the fastest that can and has no reservation.

    Raises:
        RuntimeError: the named backend cannot serve the call, or a GPU backend failed its self-check; the sentence says
            why.
    """
    if name is None:
        module = _fastest(function, dictionary, h)
    else:
        module = _IMPLEMENTED[name]
        objection = _objection(module, function, dictionary, h)
        if objection is not None:
            raise RuntimeError(f"backend {name!r} cannot run {function}: {objection}")
    self_check.ensure(module, h.device)
    return module


def _fastest(function, dictionary, h) -> types.ModuleType:
    willing = (
        module
        for module in _IMPLEMENTED.values()
        if _objection(module, function, dictionary, h) is None and module.reservation(dictionary, h.device) is None
    )
    first = next(willing)
    if first is cuda and not architectures.preferred(dictionary, h.device):
        second = next(willing)
        return second if second is triton else first
    return first


def _objection(module, function, dictionary, h) -> str | None:
    reason = module.unavailable() or module.unsupported_device(h.device)
    if reason is not None:
        return reason
    for what, given, served in (
        ("the function", function, module.FUNCTIONS),
        ("the dictionary", dictionary.kind, module.DICTIONARIES),
        ("the dtype", h.dtype, module.DTYPES),
    ):
        if given not in served:
            return f"it does not serve {what} {given}; it serves {', '.join(str(entry) for entry in served)}"
    return module.unsupported_dictionary(dictionary)


def _dtype_names(dtypes) -> tuple[str, ...]:
    return tuple(str(dtype).removeprefix("torch.") for dtype in dtypes)
