"""Backend "cuda": the CUDA C++ kernels for dictionaries of ±1 codes on NVIDIA GPUs (csrc/cuda).

Each function computes the formula of the function of the same name in `reference.py`: float32 logits by fast
Walsh-Hadamard transforms in registers (independent codes: float16 halves on the tensor cores, 22 bits), sums over at
most 32 blocks in float32 and beyond that in float64. Memory is O(n f + 2^22), whatever c is, but for
`projector_softmax`, whose result is n x c. No call waits for the device, so that calls can be captured in a CUDA graph.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import types

import torch

from .. import philox
from ..dictionary import Dictionary
from . import cuda_architectures, sign_codes

try:
    from .. import _core

    _kernels = getattr(_core, "cuda", None)
    _missing = None if _kernels else f"the compiled core was built without CUDA: {_core.without_cuda}"
except ImportError as error:
    _kernels, _missing = None, f"the compiled core cannot be imported: {error}"

NAME = "cuda"
# A dense dictionary is served if all entries are ±1: `Dictionary.signs` then holds them packed to bits.
DICTIONARIES = ("hadamard", "rademacher", "dense")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
FUNCTIONS = (
    "cplearn_loss", "projector_softmax", "projector_logsumexp", "expected_code", "mean_assignment", "assign",
)  # fmt: skip

_KINDS = {"hadamard": 0, "rademacher": 1, "dense": 2}
_DTYPE_NUMBERS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_PRIOR_NUMBERS = {"reverse_kl": 0, "cross_entropy": 1}
_MAX_FEATURES = 8192
_MAX_CODES = 1 << 30
_MAX_ROWS = 1 << 22  # of one batch
# Codes that are worked on at a time, and, for independent codes, products with rows that are kept meanwhile.
SPAN_CODES = SPAN_PRODUCTS = 1 << 22
# `assign` takes codes in chunks of whole blocks of this size, and holds about this many scores at a time.
_BLOCK = 8192
_SCORES = 1 << 22


@dataclasses.dataclass
class _Emulation:
    """Stands in for the device in tests: the same kernels on CPU tensors, with limits that small cases reach."""

    kernels: types.ModuleType
    processors: int
    span_codes: int
    span_products: int


_emulation: _Emulation | None = None


@contextlib.contextmanager
def emulated(kernels: types.ModuleType, processors: int = 2, span_codes: int = SPAN_CODES,
             span_products: int = SPAN_PRODUCTS):
    """For tests: run calls on CPU tensors with the emulated kernels of tests/cuda_emulation."""
    global _emulation
    previous, _emulation = _emulation, _Emulation(kernels, processors, span_codes, span_products)
    try:
        yield
    finally:
        _emulation = previous


def unavailable() -> str | None:
    """Why this backend cannot run on this machine, or None."""
    if _emulation is not None:
        return None
    if _kernels is None:
        return _missing
    built = f"built for {_kernels.architectures()}"
    count, reason = _device_count()
    if count == 0:
        return f"{built}; no device: {reason}"
    if not torch.cuda.is_available():
        return f"{built}; there is a GPU, but PyTorch {torch.__version__} cannot use it"
    return None


@functools.lru_cache(maxsize=1)
def _device_count() -> tuple[int, str]:
    return _kernels.device_count()


def unsupported_device(device: torch.device) -> str | None:
    """Why tensors on `device` cannot be used, or None."""
    if _emulation is not None:
        return None if device.type == "cpu" else f"in emulation it serves CPU tensors, got one on {device}"
    if device.type != "cuda":
        return f"it serves tensors on a GPU, got one on {device}"
    if torch.version.hip is not None:
        return "it serves NVIDIA GPUs"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"it needs compute capability 8.0 or higher, {device} has {cuda_architectures.name(device)}"
    return None


def unsupported_dictionary(dictionary: Dictionary) -> str | None:
    """Why the codes of `dictionary` cannot be used, or None."""
    return sign_codes.unsupported(dictionary, _MAX_FEATURES, _MAX_CODES)


def reservation(dictionary: Dictionary, device: torch.device) -> str | None:
    """Why a call that names no backend should not come here, or None."""
    if _emulation is not None:
        return "the emulation is for tests"
    if dictionary.num_features <= 16:
        return "float32 logits lack precision for 16 features and fewer"
    return cuda_architectures.reservation(device)


def description() -> str:
    """One line on what runs."""
    if _emulation is not None:
        return "CUDA C++ kernels in emulation, on CPU tensors: for tests"
    device = torch.device("cuda", torch.cuda.current_device())
    name = cuda_architectures.name(device)
    state = "tested on it" if name in cuda_architectures.verified() else "not yet tested on it: runs when named"
    return f"CUDA C++ kernels built for {_kernels.architectures()} on {torch.cuda.get_device_name()}, {name}, {state}"


def cplearn_loss(h1, h2, dictionary, temperature, beta, prior, prior_probs, need_grad):
    """`reference.cplearn_loss` with its gradient: (loss, invariance, prior, grad1, grad2); no need, empty gradients."""
    out = torch.empty(3, device=h1.device)
    shape = h1.shape if need_grad else (0,)
    grad1, grad2 = (torch.empty(shape, dtype=torch.float32, device=h1.device) for _ in range(2))
    if prior_probs is not None:
        prior_probs = prior_probs.to(torch.float32).contiguous()
    _call(
        "cplearn_loss", [h1, h2], dictionary, temperature, beta, _PRIOR_NUMBERS[prior],
        0 if prior_probs is None else prior_probs.data_ptr(), out.data_ptr(), _address(grad1), _address(grad2),
    )  # fmt: skip
    # Three results of one operator must not share memory.
    return out[0].clone(), out[1].clone(), out[2].clone(), grad1, grad2


def projector_softmax(h, dictionary, temperature):
    """`reference.projector_softmax`, shape `(n, c)`."""
    return _of_rows("projector_softmax", h, dictionary, temperature, h.shape[0], dictionary.num_codes)


def projector_softmax_backward(upstream, h, p, dictionary, temperature):
    """`dL/dh_i = 1/temperature * sum_j p_ij (v_ij - sum_k p_ik v_ik) w_j` for `v = upstream` of shape `(n, c)`."""
    upstream, p = _contiguous(upstream), _contiguous(p)
    grad = torch.empty(h.shape, dtype=torch.float32, device=h.device)
    _call(
        "projector_softmax_backward", [h], dictionary, upstream.data_ptr(), p.data_ptr(), temperature, grad.data_ptr()
    )
    return _nan_where_not_finite(grad, h)


def projector_logsumexp(h, dictionary, temperature):
    """`reference.projector_logsumexp`, shape `(n,)`."""
    return _of_rows("projector_logsumexp", h, dictionary, temperature, h.shape[0])


def projector_logsumexp_backward(upstream, h, dictionary, temperature):
    """`dL/dh_i = v_i B_i / temperature` for `v = upstream` of shape `(n,)`."""
    return expected_code(h, dictionary, temperature).mul_((upstream / temperature)[:, None])


def expected_code(h, dictionary, temperature):
    """`reference.expected_code`, shape `(n, f)`."""
    return _of_rows("expected_code", h, dictionary, temperature, *h.shape)


def expected_code_backward(upstream, h, dictionary, temperature):
    """`dL/dh_i = 1/temperature * sum_j p_ij (v_ij - sum_k p_ik v_ik) w_j` with `v_ij = upstream_i · w_j`."""
    return _backward_of_rows("expected_code_backward", upstream, h, dictionary, temperature)


def mean_assignment(h, dictionary, temperature):
    """`reference.mean_assignment`, shape `(c,)`."""
    return _of_rows("mean_assignment", h, dictionary, temperature, dictionary.num_codes)


def mean_assignment_backward(upstream, h, dictionary, temperature):
    """`dL/dh_i = 1/(n temperature) * sum_j p_ij (v_j - sum_k p_ik v_k) w_j` for `v = upstream` of shape `(c,)`."""
    return _backward_of_rows("mean_assignment_backward", upstream, h, dictionary, temperature)


def assign(h, dictionary, top_k):
    """`reference.assign`: (scores, codes); for more than the best, by sorting chunks of scores."""
    n = h.shape[0]
    if top_k == 1:
        scores = torch.empty(n, 1, device=h.device)
        codes = torch.empty(n, 1, dtype=torch.int64, device=h.device)
        _call("best_codes", [h], dictionary, scores.data_ptr(), codes.data_ptr())
        return scores, codes
    chunk = math.ceil(_SCORES / n / _BLOCK) * _BLOCK

    def write_scores(out, start):
        _call("scores", [h], dictionary, start, out.shape[1], out.data_ptr())

    return sign_codes.best_of_chunks(write_scores, n, dictionary.num_codes, chunk, top_k, h.device)


# ---- calls of the kernels ------------------------------------------------------------------------------------------------


def _of_rows(name, h, dictionary, temperature, *shape):
    out = torch.empty(shape, dtype=torch.float32, device=h.device)
    _call(name, [h], dictionary, temperature, out.data_ptr())
    return out


def _backward_of_rows(name, upstream, h, dictionary, temperature):
    upstream = _contiguous(upstream)
    grad = torch.empty(h.shape, dtype=torch.float32, device=h.device)
    _call(name, [h], dictionary, upstream.data_ptr(), temperature, grad.data_ptr())
    return grad


def _call(name, views, dictionary, *arguments) -> None:
    """Count the memory that a function needs, borrow it from PyTorch, run it on the current stream."""
    h = views[0]
    if h.shape[0] > _MAX_ROWS:
        raise ValueError(f"the cuda backend serves up to {_MAX_ROWS} rows, got {h.shape[0]}")
    codes = _codes(dictionary, h.device)
    described = [(view.data_ptr(), _DTYPE_NUMBERS[view.dtype], *view.stride()) for view in views]
    with _on(h.device):
        kernels, device = _device(h.device)
        function = getattr(kernels, name)
        needed = function(device, 0, codes, described, h.shape[0], *arguments)
        memory = torch.empty(needed, dtype=torch.uint8, device=h.device)
        function(device, memory.data_ptr(), codes, described, h.shape[0], *arguments)


def _on(device: torch.device):
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _device(device: torch.device):
    """(kernels, the device as they want it)"""
    if _emulation is not None:
        e = _emulation
        return e.kernels, e.kernels.Device(0, 0, e.processors, 163 * 1024, e.span_codes, e.span_products)
    properties = torch.cuda.get_device_properties(device)
    return _kernels, _kernels.Device(
        torch.cuda.current_device(), torch.cuda.current_stream(device).cuda_stream, properties.multi_processor_count,
        getattr(properties, "shared_memory_per_block_optin", 99 * 1024), SPAN_CODES, SPAN_PRODUCTS,
    )  # fmt: skip


def _codes(dictionary: Dictionary, device: torch.device):
    if dictionary.kind == "dense":
        kernels = _emulation.kernels if _emulation is not None else _kernels
        codes = kernels.Dictionary(
            _KINDS["dense"], dictionary.num_features, dictionary.num_codes, 0, 0, 0, 0, dictionary.signs.data_ptr()
        )
        codes.signs = dictionary.signs
        return codes
    kernels = _emulation.kernels if _emulation is not None else _kernels
    return _generated_codes(
        kernels, dictionary.kind, dictionary.num_features, dictionary.num_codes, dictionary.seed, str(device)
    )


@functools.lru_cache(maxsize=32)
def _generated_codes(kernels, kind: str, num_features: int, num_codes: int, seed: int, device: str):
    """The kernels' description of a dictionary; it carries the tensors on the device that it points into."""
    if kind == "rademacher":
        return kernels.Dictionary(_KINDS[kind], num_features, num_codes, seed, 0, 0, 0, 0)
    log2_block = (num_features - 1).bit_length()
    places = philox.injection(seed, num_features, 1 << log2_block)
    coordinate_at = torch.full((1 << log2_block,), -1, dtype=torch.int32)
    coordinate_at[places] = torch.arange(num_features, dtype=torch.int32)
    positions, coordinate_at = places.to(torch.int32).to(device), coordinate_at.to(device)
    codes = kernels.Dictionary(
        _KINDS[kind], num_features, num_codes, seed, log2_block, positions.data_ptr(), coordinate_at.data_ptr(), 0
    )
    codes.tables = (positions, coordinate_at)
    return codes


def _contiguous(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to(torch.float32).contiguous()


def _address(tensor: torch.Tensor) -> int:
    return tensor.data_ptr() if tensor.numel() else 0


def _nan_where_not_finite(result: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """A row that holds a NaN or an infinity has a result of NaN."""
    return torch.where(torch.isfinite(h).all(dim=1, keepdim=True), result, torch.nan)
