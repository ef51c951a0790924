"""Backend "cuda": the CUDA C++ kernels for dictionaries of ±1 codes on NVIDIA GPUs (csrc/cuda).

Each function computes the formula of the function of the same name in `reference.py`: float32 logits by fast
Walsh-Hadamard transforms in registers (independent codes: float16 halves on the tensor cores, 22 bits), sums over at
most 32 blocks in float32 and beyond that in float64. Memory is O(n f + 2^22), whatever c is, but for
`projector_softmax`, whose result is n x c. No call waits for the device, so that calls can be captured in a CUDA graph.
`backends/interface.py` says what each function gets and returns.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ...dictionary import Dictionary
from ...options import KINDS, PRIORS
from .. import interface, sign_codes
from ..arguments import address, as_float32, prior_as_float32
from ..results import best_of_chunks, with_nan_rows
from . import architectures, launch
from .launch import call
from .launch import emulated as emulated
from .shard import Shard as Shard

NAME = "cuda"
FUNCTIONS, DICTIONARIES, DTYPES = interface.FUNCTIONS, KINDS, sign_codes.DTYPES

# `assign` takes codes in chunks of whole blocks of this size.
_BLOCK = 8192


def unavailable() -> str | None:
    if launch.emulation is not None:
        return None
    if launch.built is None:
        return launch.missing
    built = f"built for {launch.built.architectures()}"
    count, reason = _device_count()
    if count == 0:
        return f"{built}; no device: {reason}"
    if not torch.cuda.is_available():
        return f"{built}; there is a GPU, but PyTorch {torch.__version__} cannot use it"
    return None


@functools.lru_cache(maxsize=1)
def _device_count() -> tuple[int, str]:
    count, reason = launch.built.device_count()
    return count, reason


def unsupported_device(device: torch.device) -> str | None:
    if launch.emulation is not None:
        return None if device.type == "cpu" else f"in emulation it serves CPU tensors, got one on {device}"
    if device.type != "cuda":
        return f"it serves tensors on a GPU, got one on {device}"
    if torch.version.hip is not None:
        return "it serves NVIDIA GPUs"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"it needs compute capability 8.0 or higher, {device} has {architectures.name(device)}"
    return None


def unsupported_dictionary(dictionary: Dictionary) -> str | None:
    return sign_codes.unsupported(dictionary, sign_codes.MAX_FEATURES, sign_codes.MAX_CODES)


def reservation(dictionary: Dictionary, device: torch.device) -> str | None:
    if launch.emulation is not None:
        return "the emulation is for tests"
    return sign_codes.lacks_precision(dictionary) or architectures.reservation(device)


def description() -> str:
    if launch.emulation is not None:
        return "CUDA C++ kernels in emulation, on CPU tensors: for tests"
    device = torch.device("cuda", torch.cuda.current_device())
    name = architectures.name(device)
    state = "tested on it" if name in architectures.verified() else "not yet tested on it: runs when named"
    built = launch.built.architectures()
    return f"CUDA C++ kernels built for {built} on {torch.cuda.get_device_name()}, {name}, {state}"


def cplearn_loss(
    h1: Tensor,
    h2: Tensor,
    dictionary: Dictionary,
    temperature: float,
    beta: float,
    prior: str,
    prior_probs: Tensor | None,
    need_grad: bool,
) -> interface.LossResult:
    out = torch.empty(3, device=h1.device)
    shape = h1.shape if need_grad else (0,)
    grad1, grad2 = (torch.empty(shape, dtype=torch.float32, device=h1.device) for _ in range(2))
    prior_probs = prior_as_float32(prior_probs)
    call(
        "cplearn_loss", [h1, h2], dictionary, temperature, beta, PRIORS.index(prior), address(prior_probs),
        out.data_ptr(), address(grad1), address(grad2),
    )  # fmt: skip
    # Three results of one operator must not share memory.
    return out[0].clone(), out[1].clone(), out[2].clone(), grad1, grad2


def projector_softmax(h: Tensor, dictionary: Dictionary, temperature: float) -> Tensor:
    return _of_rows("projector_softmax", h, dictionary, temperature, h.shape[0], dictionary.num_codes)


def projector_softmax_backward(
    upstream: Tensor, h: Tensor, p: Tensor, dictionary: Dictionary, temperature: float
) -> Tensor:
    upstream, p = as_float32(upstream), as_float32(p)
    grad = torch.empty(h.shape, dtype=torch.float32, device=h.device)
    call("projector_softmax_backward", [h], dictionary, upstream.data_ptr(), p.data_ptr(), temperature, grad.data_ptr())
    return with_nan_rows(grad, h)


def projector_logsumexp(h: Tensor, dictionary: Dictionary, temperature: float) -> Tensor:
    return _of_rows("projector_logsumexp", h, dictionary, temperature, h.shape[0])


def expected_code(h: Tensor, dictionary: Dictionary, temperature: float) -> Tensor:
    return _of_rows("expected_code", h, dictionary, temperature, *h.shape)


def expected_code_backward(upstream: Tensor, h: Tensor, dictionary: Dictionary, temperature: float) -> Tensor:
    return _backward_of_rows("expected_code_backward", upstream, h, dictionary, temperature)


def mean_assignment(h: Tensor, dictionary: Dictionary, temperature: float) -> Tensor:
    return _of_rows("mean_assignment", h, dictionary, temperature, dictionary.num_codes)


def mean_assignment_backward(upstream: Tensor, h: Tensor, dictionary: Dictionary, temperature: float) -> Tensor:
    return _backward_of_rows("mean_assignment_backward", upstream, h, dictionary, temperature)


def assign(h: Tensor, dictionary: Dictionary, top_k: int) -> tuple[Tensor, Tensor]:
    """For more than the best, by sorting chunks of scores."""
    n = h.shape[0]
    if top_k == 1:
        scores = torch.empty(n, 1, device=h.device)
        codes = torch.empty(n, 1, dtype=torch.int64, device=h.device)
        call("best_codes", [h], dictionary, scores.data_ptr(), codes.data_ptr())
        return scores, codes
    chunk = math.ceil(sign_codes.SCORES_AT_ONCE / n / _BLOCK) * _BLOCK

    def chunks() -> Iterator[tuple[int, Tensor]]:
        for start in range(0, dictionary.num_codes, chunk):
            count = min(chunk, dictionary.num_codes - start)
            scores = torch.empty(n, count, device=h.device)
            call("scores", [h], dictionary, start, count, scores.data_ptr())
            yield start, scores

    return best_of_chunks(chunks(), top_k)


def _of_rows(name: str, h: Tensor, dictionary: Dictionary, temperature: float, *shape: int) -> Tensor:
    out = torch.empty(shape, dtype=torch.float32, device=h.device)
    call(name, [h], dictionary, temperature, out.data_ptr())
    return out


def _backward_of_rows(name: str, upstream: Tensor, h: Tensor, dictionary: Dictionary, temperature: float) -> Tensor:
    upstream = as_float32(upstream)
    grad = torch.empty(h.shape, dtype=torch.float32, device=h.device)
    call(name, [h], dictionary, upstream.data_ptr(), temperature, grad.data_ptr())
    return grad
