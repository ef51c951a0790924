"""What all ranks must pass alike to a sharded function, written as integers that they compare in every call."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Sequence

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from ..bits import signed
from ..dictionary import Dictionary
from ..errors import Disagreement
from ..options import BACKENDS, DTYPES, KINDS, PRIORS, ROWS
from .collectives import Ranks

FUNCTIONS = ("cplearn_loss", "mean_assignment", "assign")

_checksums = WeakTensorKeyDictionary()


@dataclasses.dataclass(frozen=True)
class Call:
    """The arguments of one rank's call. All but `rows` (if sharded) and `need_grad` are the same on every rank."""

    function: str
    backend: str
    dictionary: Dictionary
    dtype: torch.dtype
    layout: str
    rows: int
    temperature: float = 1.0
    beta: float = 1.0
    prior: str = "reverse_kl"
    prior_probs: torch.Tensor | None = None
    top_k: int = 1
    need_grad: bool = False

    def numbers(self) -> list[int]:
        """This rank's call as signed 64-bit integers, in the order of `_FIELDS`."""
        d = self.dictionary
        return [
            FUNCTIONS.index(self.function), BACKENDS.index(self.backend), KINDS.index(d.kind), d.num_features,
            d.num_codes, signed(d.seed, 64), _checksum(d.weight), _bits(self.temperature), _bits(self.beta),
            PRIORS.index(self.prior), _checksum(self.prior_probs), DTYPES.index(self.dtype),
            ROWS.index(self.layout), self.top_k, self.rows, int(self.need_grad),
        ]  # fmt: skip


def check_arguments(ranks: Ranks, call: Call, device: torch.device) -> tuple[list[int], bool]:
    """Compare the calls of all ranks: (the number of rows that each rank has, whether any needs a gradient).

    Raises:
        Disagreement: they differ; the sentence says in what, and which rank passed what.
        RankFailure: a rank failed, died or did not come.
    """
    calls = ranks.compare(call.numbers(), device)
    if len({numbers[0] for numbers in calls}) > 1:
        calls = [numbers[:1] for numbers in calls]  # other functions have other arguments
    free = {_NEED_GRAD, _NUM_ROWS} if call.layout == "sharded" else {_NEED_GRAD}
    different = [
        f"{name} was {_values(values, show, ranks.names)}"
        for i, ((name, show), values) in enumerate(zip(_FIELDS, zip(*calls, strict=True), strict=False))
        if len(set(values)) > 1 and i not in free
    ]
    if different:
        raise Disagreement(f"process_group: expected the same arguments on every rank, but {'; '.join(different)}")
    return [numbers[_NUM_ROWS] for numbers in calls], any(numbers[_NEED_GRAD] for numbers in calls)


def _name_in(names: Sequence[object]) -> Callable[[int], str]:
    return lambda number: str(names[number]).removeprefix("torch.")


def _float(number: int) -> str:
    return repr(struct.unpack("<d", struct.pack("<q", number))[0])


_FIELDS: tuple[tuple[str, Callable[[int], str]], ...] = (
    ("the function", _name_in(FUNCTIONS)),
    ("backend", _name_in(BACKENDS)),
    ("the dictionary's kind", _name_in(KINDS)),
    ("num_features", str),
    ("num_codes", str),
    ("seed", lambda number: str(number % (1 << 64))),
    ("the dense dictionary's matrix", lambda number: f"one with checksum {number % (1 << 64):x}"),
    ("temperature", _float),
    ("beta", _float),
    ("prior", _name_in(PRIORS)),
    ("prior_probs", lambda number: f"with checksum {number % (1 << 64):x}" if number else "None"),
    ("dtype", _name_in(DTYPES)),
    ("rows", _name_in(ROWS)),
    ("top_k", str),
    ("the number of rows", str),
    ("need_grad", str),
)
_NUM_ROWS, _NEED_GRAD = 14, 15


def _values(values: Sequence[int], show: Callable[[int], str], names: Sequence[int]) -> str:
    """'0.3 on ranks 0, 1 and 0.31 on rank 2'."""
    by_value: dict[int, list[str]] = {}
    for name, value in zip(names, values, strict=True):
        by_value.setdefault(value, []).append(str(name))
    return " and ".join(
        f"{show(value)} on rank{'s' if len(who) > 1 else ''} {', '.join(who)}" for value, who in by_value.items()
    )


def _bits(number: float) -> int:
    return int.from_bytes(struct.pack("<d", number), "little", signed=True)


def _checksum(tensor: torch.Tensor | None) -> int:
    """An integer that depends on every element and its place; 0 for None. Computed once per tensor and change of it."""
    if tensor is None:
        return 0
    # A tensor made in inference mode does not count its changes.
    version = None if tensor.is_inference() else tensor._version
    known, value = _checksums.get(tensor, (None, 0))
    if version is None or known != version:
        elements, value = tensor.detach().flatten(), 1
        for start in range(0, elements.numel(), 1 << 22):
            words = elements[start : start + (1 << 22)].double().view(torch.int64)
            place = torch.arange(start, start + words.numel(), device=words.device)
            value = signed((value * 31 + int((words * (2 * place + 1)).sum())) % (1 << 64), 64)
        _checksums[tensor] = version, value or 1
    return _checksums[tensor][1]
