"""Backend "cuda": the CUDA C++ kernels for dictionaries of ±1 codes on NVIDIA GPUs (csrc/cuda).

Each function computes the formula of the function of the same name in `reference.py`: float32 logits by fast
Walsh-Hadamard transforms in registers (independent codes: float16 halves on the tensor cores, 22 bits), sums over at
most 32 blocks in float32 and beyond that in float64. Memory is O(n f + 2^22), whatever c is, but for
`projector_softmax`, whose result is n x c. No call waits for the device, so that calls can be captured in a CUDA graph.
"""

from __future__ import annotations

import functools
import math

import torch

from ...dictionary import Dictionary
from .. import sign_codes
from . import architectures, launch
from .launch import PRIOR_NUMBERS, address, call, emulated, prior_probs_of
from .shard import Shard

__all__ = ["Shard", "emulated"]  # of other files; the rest is here

NAME = "cuda"
# A dense dictionary is served if all entries are ±1: `Dictionary.signs` then holds them packed to bits.
DICTIONARIES = ("hadamard", "rademacher", "dense")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
FUNCTIONS = (
    "cplearn_loss", "projector_softmax", "projector_logsumexp", "expected_code", "mean_assignment", "assign",
)  # fmt: skip

_MAX_FEATURES = 8192
_MAX_CODES = 1 << 30
# `assign` takes codes in chunks of whole blocks of this size, and holds about this many scores at a time.
_BLOCK = 8192
_SCORES = 1 << 22


def unavailable() -> str | None:
    """Why this backend cannot run on this machine, or None."""
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
    return launch.built.device_count()


def unsupported_device(device: torch.device) -> str | None:
    """Why tensors on `device` cannot be used, or None."""
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
    """Why the codes of `dictionary` cannot be used, or None."""
    return sign_codes.unsupported(dictionary, _MAX_FEATURES, _MAX_CODES)


def reservation(dictionary: Dictionary, device: torch.device) -> str | None:
    """Why a call that names no backend should not come here, or None."""
    if launch.emulation is not None:
        return "the emulation is for tests"
    if dictionary.num_features <= 16:
        return "float32 logits lack precision for 16 features and fewer"
    return architectures.reservation(device)


def description() -> str:
    """One line on what runs."""
    if launch.emulation is not None:
        return "CUDA C++ kernels in emulation, on CPU tensors: for tests"
    device = torch.device("cuda", torch.cuda.current_device())
    name = architectures.name(device)
    state = "tested on it" if name in architectures.verified() else "not yet tested on it: runs when named"
    built = launch.built.architectures()
    return f"CUDA C++ kernels built for {built} on {torch.cuda.get_device_name()}, {name}, {state}"


def cplearn_loss(h1, h2, dictionary, temperature, beta, prior, prior_probs, need_grad):
    """`reference.cplearn_loss` with its gradient: (loss, invariance, prior, grad1, grad2); no need, empty gradients."""
    out = torch.empty(3, device=h1.device)
    shape = h1.shape if need_grad else (0,)
    grad1, grad2 = (torch.empty(shape, dtype=torch.float32, device=h1.device) for _ in range(2))
    prior_probs = prior_probs_of(prior_probs)
    call(
        "cplearn_loss", [h1, h2], dictionary, temperature, beta, PRIOR_NUMBERS[prior],
        address(prior_probs), out.data_ptr(), address(grad1), address(grad2),
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
    call("projector_softmax_backward", [h], dictionary, upstream.data_ptr(), p.data_ptr(), temperature, grad.data_ptr())
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
        call("best_codes", [h], dictionary, scores.data_ptr(), codes.data_ptr())
        return scores, codes
    chunk = math.ceil(_SCORES / n / _BLOCK) * _BLOCK

    def write_scores(out, start):
        call("scores", [h], dictionary, start, out.shape[1], out.data_ptr())

    return sign_codes.best_of_chunks(write_scores, n, dictionary.num_codes, chunk, top_k, h.device)


def _of_rows(name, h, dictionary, temperature, *shape):
    out = torch.empty(shape, dtype=torch.float32, device=h.device)
    call(name, [h], dictionary, temperature, out.data_ptr())
    return out


def _backward_of_rows(name, upstream, h, dictionary, temperature):
    upstream = _contiguous(upstream)
    grad = torch.empty(h.shape, dtype=torch.float32, device=h.device)
    call(name, [h], dictionary, upstream.data_ptr(), temperature, grad.data_ptr())
    return grad


def _contiguous(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to(torch.float32).contiguous()


def _nan_where_not_finite(result: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """A row that holds a NaN or an infinity has a result of NaN."""
    return torch.where(torch.isfinite(h).all(dim=1, keepdim=True), result, torch.nan)
