"""How the CUDA C++ kernels are called: on which device, with memory from PyTorch, what they are told of codes and rows.

Without a GPU the same kernels can run in emulation, on CPU tensors: for tests.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import types
from collections.abc import Iterator
from typing import Any

import torch

from ...dictionary import Dictionary
from ...options import KINDS, Kind
from .. import sign_codes
from ..arguments import address

try:
    from ... import _core

    built: Any = getattr(_core, "cuda", None)
    missing = None if built else f"the compiled core was built without CUDA: {_core.without_cuda}"
except ImportError as error:
    built, missing = None, f"the compiled core cannot be imported: {error}"

_DTYPE_NUMBERS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_MAX_ROWS = 1 << 22  # of one batch
# Codes that are worked on at a time, and, for independent codes, products with rows that are kept meanwhile.
SPAN_CODES = SPAN_PRODUCTS = 1 << 22


@dataclasses.dataclass
class _Emulation:
    """Stands in for the device in tests: the same kernels on CPU tensors, with limits that small cases reach."""

    kernels: types.ModuleType
    processors: int
    span_codes: int
    span_products: int


emulation: _Emulation | None = None


@contextlib.contextmanager
def emulated(
    kernels: types.ModuleType, processors: int = 2, span_codes: int = SPAN_CODES, span_products: int = SPAN_PRODUCTS
) -> Iterator[None]:
    """For tests: run calls on CPU tensors with the emulated kernels of tests/kernels/cuda/emulation."""
    global emulation
    previous, emulation = emulation, _Emulation(kernels, processors, span_codes, span_products)
    try:
        yield
    finally:
        emulation = previous


def call(name: str, views: list[torch.Tensor], dictionary: Dictionary, *arguments: Any) -> None:
    """Count the memory that a function needs, borrow it from PyTorch, run it on the current stream."""
    h = views[0]
    if h.shape[0] > _MAX_ROWS:
        raise ValueError(f"the cuda backend serves up to {_MAX_ROWS} rows, got {h.shape[0]}")
    codes = codes_of(dictionary, h.device)
    described = [(view.data_ptr(), _DTYPE_NUMBERS[view.dtype], *view.stride()) for view in views]
    with _on(h.device):
        device = device_of(h.device)
        function = getattr(kernels(), name)
        needed = function(device, 0, codes, described, h.shape[0], *arguments)
        memory = torch.empty(needed, dtype=torch.uint8, device=h.device)
        function(device, memory.data_ptr(), codes, described, h.shape[0], *arguments)


def kernels() -> Any:
    """The module whose functions run the kernels."""
    return built if emulation is None else emulation.kernels


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def device_of(device: torch.device) -> Any:
    """The device, which is the current one, as the kernels want it."""
    if emulation is not None:
        e = emulation
        return e.kernels.Device(0, 0, e.processors, 163 * 1024, e.span_codes, e.span_products)
    properties = torch.cuda.get_device_properties(device)
    return built.Device(
        torch.cuda.current_device(), torch.cuda.current_stream(device).cuda_stream, properties.multi_processor_count,
        getattr(properties, "shared_memory_per_block_optin", 99 * 1024), SPAN_CODES, SPAN_PRODUCTS,
    )  # fmt: skip


def codes_of(dictionary: Dictionary, device: torch.device) -> Any:
    """The kernels' description of a dictionary, or of a range of one; it carries the tensors that it points into."""
    d = dictionary
    # Kernels that read packed signs are given those of the range, and count its codes from 0.
    place = d.first_code if d.signs is None else 0, d.total_codes
    values = kernels(), str(device), d.kind, d.num_features, d.num_codes, d.seed, *place
    return _generated(*values) if d.signs is None else _described(*values, d.signs)


def _described(
    module: types.ModuleType,
    device: str,
    kind: Kind,
    num_features: int,
    num_codes: int,
    seed: int,
    first_code: int,
    total_codes: int,
    signs: torch.Tensor | None = None,
) -> Any:
    positions = coordinate_at = None
    log2_block = 0
    if kind == "hadamard":
        positions, coordinate_at = sign_codes.hadamard_places(num_features, seed, device)
        log2_block = (num_features - 1).bit_length()
    codes = module.Dictionary(
        KINDS.index(kind), num_features, num_codes, seed, log2_block, address(positions), address(coordinate_at),
        address(signs), first_code, total_codes,
    )  # fmt: skip
    codes.tensors = positions, coordinate_at, signs
    return codes


_generated = functools.lru_cache(maxsize=32)(_described)
