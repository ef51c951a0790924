"""The backends by name: which can run here, which fits a call, and why the others do not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch

from ..dictionary import Dictionary
from ..options import DTYPES, KINDS
from . import interface, self_check
from .chunked import functions as chunked
from .cpu import functions as cpu
from .cuda import architectures
from .cuda import functions as cuda
from .interface import Backend
from .triton import functions as triton

# In the order in which a call without a named backend tries them: that of options.BACKENDS.
_IMPLEMENTED: dict[str, Backend] = {"cpu": cpu, "cuda": cuda, "triton": triton, "torch": chunked}


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


class Backends(dict[str, BackendInfo]):
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
    everything = interface.FUNCTIONS, KINDS, _names(DTYPES)
    found = Backends(reference=BackendInfo("reference", True, "plain PyTorch on all n x c logits", *everything))
    for name, module in _IMPLEMENTED.items():
        reason = module.unavailable()
        if reason is None:
            served = module.FUNCTIONS, module.DICTIONARIES, _names(module.DTYPES)
            found[name] = BackendInfo(name, True, module.description(), *served)
        else:
            found[name] = BackendInfo(name, False, reason)
    return found


def select(name: str | None, function: str, dictionary: Dictionary, h: torch.Tensor) -> Backend:
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


def _fastest(function: str, dictionary: Dictionary, h: torch.Tensor) -> Backend:
    willing = (
        module
        for module in _IMPLEMENTED.values()
        if _objection(module, function, dictionary, h) is None and module.reservation(dictionary, h.device) is None
    )
    first = next(willing)
    if first.NAME == "cuda" and not architectures.preferred(dictionary, h.device):
        second = next(willing)
        return second if second.NAME == "triton" else first
    return first


def _objection(module: Backend, function: str, dictionary: Dictionary, h: torch.Tensor) -> str | None:
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


def _names(dtypes: Iterable[torch.dtype]) -> tuple[str, ...]:
    return tuple(str(dtype).removeprefix("torch.") for dtype in dtypes)
