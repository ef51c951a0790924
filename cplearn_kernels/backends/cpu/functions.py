"""Backend "cpu": the C++ kernels for dictionaries of ±1 codes on CPU tensors (csrc/cpu).

Each function computes the formula of the function of the same name in `reference.py` in float32, with sums across
blocks of codes in float64. The result does not depend on the number of threads. Memory is O(n * f), whatever c is,
but for `projector_softmax`, whose result is n x c. Long calls can be interrupted (Ctrl-C) from Python's main thread.
`backends/interface.py` says what each function gets and returns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...dictionary import Dictionary
from ...options import KINDS, PRIORS
from .. import interface, sign_codes
from ..arguments import address, as_float32, prior_as_float32
from ..results import with_nan_rows
from . import launch
from .launch import call, codes_of, targets
from .launch import use_target as use_target
from .shard import Shard as Shard

NAME = "cpu"
FUNCTIONS, DICTIONARIES, DTYPES = interface.FUNCTIONS, KINDS, sign_codes.DTYPES


def unavailable() -> str | None:
    return None if launch.core else f"the compiled core cannot be imported: {launch.missing}"


def unsupported_device(device: torch.device) -> str | None:
    return None if device.type == "cpu" else f"it serves CPU tensors, got one on {device}"


def unsupported_dictionary(dictionary: Dictionary) -> str | None:
    return sign_codes.unsupported(dictionary)


def reservation(dictionary: Dictionary, device: torch.device) -> str | None:
    return sign_codes.lacks_precision(dictionary)


def description() -> str:
    threads = f"{torch.get_num_threads()} threads" if launch.core.openmp else "one thread, built without OpenMP"
    return f"C++ kernels, instruction set {launch.target} of {', '.join(targets())}, {threads}"


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
    h1, h2, prior_probs = as_float32(h1), as_float32(h2), prior_as_float32(prior_probs)
    grad1, grad2 = (torch.empty_like(h) if need_grad else h.new_empty(0) for h in (h1, h2))
    invariance, prior_value = call(
        "cplearn_loss", codes_of(dictionary), h1.data_ptr(), h2.data_ptr(), h1.shape[0], temperature, beta,
        PRIORS.index(prior), address(prior_probs), address(grad1), address(grad2),
    )  # fmt: skip
    values = prior_value + beta * invariance, invariance, prior_value
    loss, *terms = (torch.tensor(value, dtype=torch.float32) for value in values)
    return loss, terms[0], terms[1], grad1, grad2


def projector_softmax(h: Tensor, dictionary: Dictionary, temperature: float) -> Tensor:
    return _of_rows("projector_softmax", h, dictionary, temperature, dictionary.num_codes)


def projector_softmax_backward(
    upstream: Tensor, h: Tensor, p: Tensor, dictionary: Dictionary, temperature: float
) -> Tensor:
    upstream, p = as_float32(upstream), as_float32(p)
    grad = h.new_empty(h.shape, dtype=torch.float32)
    call(
        "projector_softmax_backward", codes_of(dictionary), h.shape[0], upstream.data_ptr(), p.data_ptr(), temperature,
        grad.data_ptr(),
    )  # fmt: skip
    return with_nan_rows(grad, h)


def projector_logsumexp(h: Tensor, dictionary: Dictionary, temperature: float) -> Tensor:
    return _of_rows("projector_logsumexp", h, dictionary, temperature)


def expected_code(h: Tensor, dictionary: Dictionary, temperature: float) -> Tensor:
    return _of_rows("expected_code", h, dictionary, temperature, dictionary.num_features)


def expected_code_backward(upstream: Tensor, h: Tensor, dictionary: Dictionary, temperature: float) -> Tensor:
    return _backward_of_rows("expected_code_backward", upstream, h, dictionary, temperature)


def mean_assignment(h: Tensor, dictionary: Dictionary, temperature: float) -> Tensor:
    h = as_float32(h)
    if not torch.isfinite(h).all():
        return h.new_full((dictionary.num_codes,), torch.nan)
    out = h.new_empty(dictionary.num_codes)
    call("mean_assignment", codes_of(dictionary), h.data_ptr(), h.shape[0], temperature, out.data_ptr())
    return out


def mean_assignment_backward(upstream: Tensor, h: Tensor, dictionary: Dictionary, temperature: float) -> Tensor:
    return _backward_of_rows("mean_assignment_backward", upstream, h, dictionary, temperature)


def assign(h: Tensor, dictionary: Dictionary, top_k: int) -> tuple[Tensor, Tensor]:
    """By a running top-k."""
    h = as_float32(h)
    scores = h.new_empty(h.shape[0], top_k)
    codes = torch.empty(h.shape[0], top_k, dtype=torch.int64)
    call("assign", codes_of(dictionary), h.data_ptr(), h.shape[0], top_k, scores.data_ptr(), codes.data_ptr())
    return with_nan_rows(scores, h), codes


def _of_rows(name: str, h: Tensor, dictionary: Dictionary, temperature: float, *width: int) -> Tensor:
    """The result, of shape `(n, *width)`, of a function that treats each row for itself."""
    h = as_float32(h)
    out = h.new_empty(h.shape[0], *width)
    call(name, codes_of(dictionary), h.data_ptr(), h.shape[0], temperature, out.data_ptr())
    return with_nan_rows(out, h)


def _backward_of_rows(name: str, upstream: Tensor, h: Tensor, dictionary: Dictionary, temperature: float) -> Tensor:
    h, upstream = as_float32(h), as_float32(upstream)
    grad = torch.empty_like(h)
    call(name, codes_of(dictionary), h.data_ptr(), h.shape[0], upstream.data_ptr(), temperature, grad.data_ptr())
    return with_nan_rows(grad, h)
