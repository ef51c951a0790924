"""How the CUDA C++ kernels are called: on which device, with memory from PyTorch, what they are told of codes and rows.

Without a GPU the same kernels can run in emulation, on CPU tensors: for tests.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import types

import torch

from ... import philox
from ...dictionary import Dictionary

try:
    from ... import _core

    built = getattr(_core, "cuda", None)
    missing = None if built else f"the compiled core was built without CUDA: {_core.without_cuda}"
except ImportError as error:
    built, missing = None, f"the compiled core cannot be imported: {error}"

_KINDS = {"hadamard": 0, "rademacher": 1, "dense": 2}
_DTYPE_NUMBERS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
PRIOR_NUMBERS = {"reverse_kl": 0, "cross_entropy": 1}
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
):
    """For tests: run calls on CPU tensors with the emulated kernels of tests/cuda_emulation."""
    global emulation
    previous, emulation = emulation, _Emulation(kernels, processors, span_codes, span_products)
    try:
        yield
    finally:
        emulation = previous


def call(name, views, dictionary, *arguments) -> None:
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


def kernels() -> types.ModuleType:
    """The module whose functions run the kernels."""
    return built if emulation is None else emulation.kernels


def _on(device: torch.device):
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def device_of(device: torch.device):
    """The device, which is the current one, as the kernels want it."""
    if emulation is not None:
        e = emulation
        return e.kernels.Device(0, 0, e.processors, 163 * 1024, e.span_codes, e.span_products)
    properties = torch.cuda.get_device_properties(device)
    return built.Device(
        torch.cuda.current_device(), torch.cuda.current_stream(device).cuda_stream, properties.multi_processor_count,
        getattr(properties, "shared_memory_per_block_optin", 99 * 1024), SPAN_CODES, SPAN_PRODUCTS,
    )  # fmt: skip


def codes_of(dictionary: Dictionary, device: torch.device):
    """The kernels' description of a dictionary, or of a range of one; it carries the tensors that it points into."""
    sizes = dictionary.num_features, dictionary.num_codes
    if dictionary.kind == "dense":
        codes = kernels().Dictionary(
            _KINDS["dense"], *sizes, 0, 0, 0, 0, dictionary.signs.data_ptr(), 0, dictionary.total_codes
        )
        codes.signs = dictionary.signs
        return codes
    return _generated_codes(
        kernels(), dictionary.kind, *sizes, dictionary.seed, dictionary.first_code, dictionary.total_codes, str(device)
    )


@functools.lru_cache(maxsize=32)
def _generated_codes(module, kind, num_features, num_codes, seed, first_code, total_codes, device: str):
    if kind == "rademacher":
        return module.Dictionary(_KINDS[kind], num_features, num_codes, seed, 0, 0, 0, 0, first_code, total_codes)
    log2_block = (num_features - 1).bit_length()
    places = philox.injection(seed, num_features, 1 << log2_block)
    coordinate_at = torch.full((1 << log2_block,), -1, dtype=torch.int32)
    coordinate_at[places] = torch.arange(num_features, dtype=torch.int32)
    positions, coordinate_at = places.to(torch.int32).to(device), coordinate_at.to(device)
    codes = module.Dictionary(
        _KINDS[kind], num_features, num_codes, seed, log2_block, positions.data_ptr(), coordinate_at.data_ptr(), 0,
        first_code, total_codes,
    )  # fmt: skip
    codes.tables = (positions, coordinate_at)
    return codes


def prior_probs_of(prior_probs: torch.Tensor | None) -> torch.Tensor | None:
    """A prior as the kernels read it."""
    return None if prior_probs is None else prior_probs.to(torch.float32).contiguous()


def address(tensor: torch.Tensor | None) -> int:
    """Where a tensor lies; 0 for none and for an empty one."""
    return 0 if tensor is None or tensor.numel() == 0 else tensor.data_ptr()
