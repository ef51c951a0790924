"""How the C++ kernels are called: with which instruction set and threads, and what they are told of codes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch

from ...dictionary import Dictionary
from ...options import KINDS, Kind
from .. import sign_codes
from ..arguments import address

try:
    from ... import _core

    core: Any = _core
    missing = ""
except ImportError as error:
    core, missing = None, str(error)

target: str = core.targets()[0][0] if core else ""


def targets() -> list[str]:
    """The instruction sets that are built and run here, fastest first."""
    return [name for name, _ in core.targets()]


@contextlib.contextmanager
def use_target(name: str) -> Iterator[None]:
    """Run the kernels of another instruction set than the fastest, to compare or to test them."""
    global target
    if name not in targets():
        raise ValueError(f"instruction set: expected one of {targets()}, got {name!r}")
    previous, target = target, name
    try:
        yield
    finally:
        target = previous


def call(name: str, codes: Any, *arguments: Any, instructions: str | None = None) -> Any:
    """Run a function of the core (csrc/bindings.cpp) with the threads of PyTorch; `instructions`: of another target."""
    return getattr(core, name)(instructions or target, codes, *arguments, torch.get_num_threads())


def codes_of(dictionary: Dictionary) -> Any:
    """The core's description of a dictionary, or of a range of one; it carries the tensor that it points into."""
    d = dictionary
    values = d.kind, d.num_features, d.num_codes, d.seed, d.first_code, d.total_codes
    return _generated(*values) if d.signs is None else _described(*values, d.signs)


def _described(
    kind: Kind,
    num_features: int,
    num_codes: int,
    seed: int,
    first_code: int,
    total_codes: int,
    signs: torch.Tensor | None = None,
) -> Any:
    positions, log2_block = None, 0
    if kind == "hadamard":
        positions, _ = sign_codes.hadamard_places(num_features, seed, "cpu")
        log2_block = (num_features - 1).bit_length()
    codes = core.Codes(
        KINDS.index(kind), num_features, num_codes, seed, log2_block, address(positions), address(signs), first_code,
        total_codes,
    )  # fmt: skip
    codes.tensors = positions, signs
    return codes


_generated = functools.lru_cache(maxsize=16)(_described)
