"""Backend "cpu": the C++ kernels for dictionaries of ±1 codes on CPU tensors (csrc/cpu).

Each function computes the formula of the function of the same name in `reference.py` in float32, with sums across
blocks of codes in float64. The result does not depend on the number of threads. Memory is O(n * f), whatever c is,
but for `projector_softmax`, whose result is n x c. Long calls can be interrupted (Ctrl-C) from Python's main thread.
"""

from __future__ import annotations

import contextlib
import functools
import math

import torch

from ... import philox
from ...dictionary import Dictionary
from .. import sign_codes

try:
    from ... import _core
except ImportError as error:
    _core, _import_error = None, str(error)

NAME = "cpu"
# A dense dictionary is served if all entries are ±1: `Dictionary.signs` then holds them packed to bits.
DICTIONARIES = ("hadamard", "rademacher", "dense")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
FUNCTIONS = (
    "cplearn_loss", "projector_softmax", "projector_logsumexp", "expected_code", "mean_assignment", "assign",
)  # fmt: skip

_KINDS = {"hadamard": 0, "rademacher": 1, "dense": 2}
_PRIOR_NUMBERS = {"reverse_kl": 0, "cross_entropy": 1}
_target = _core.targets()[0][0] if _core else None


def unavailable() -> str | None:
    """Why this backend cannot run on this machine, or None."""
    return None if _core else f"the compiled core cannot be imported: {_import_error}"


def unsupported_device(device: torch.device) -> str | None:
    """Why tensors on `device` cannot be used, or None."""
    return None if device.type == "cpu" else f"it serves CPU tensors, got one on {device}"


def unsupported_dictionary(dictionary: Dictionary) -> str | None:
    """Why the codes of `dictionary` cannot be used, or None."""
    return sign_codes.unsupported(dictionary)


def reservation(dictionary: Dictionary, device: torch.device) -> str | None:
    """Why a call that names no backend should not come here, or None.

    With few features nothing averages the rounding of a float32 logit, and many equal codes share a row's mass: the
    gradient's error reaches 2e-5 there, where the library promises 1e-5. The backend "torch" uses float64 then.
    """
    return "float32 logits lack precision for 16 features and fewer" if dictionary.num_features <= 16 else None


def description() -> str:
    """One line on what runs: the instruction set and the threads."""
    threads = f"{torch.get_num_threads()} threads" if _core.openmp else "one thread, built without OpenMP"
    return f"C++ kernels, instruction set {_target} of {', '.join(targets())}, {threads}"


def targets() -> list[str]:
    """The instruction sets that are built and run here, fastest first."""
    return [name for name, _ in _core.targets()]


@contextlib.contextmanager
def use_target(name: str):
    """Run the kernels of another instruction set than the fastest, to compare or to test them."""
    global _target
    if name not in targets():
        raise ValueError(f"instruction set: expected one of {targets()}, got {name!r}")
    previous, _target = _target, name
    try:
        yield
    finally:
        _target = previous


def cplearn_loss(h1, h2, dictionary, temperature, beta, prior, prior_probs, need_grad):
    """`reference.cplearn_loss` with its gradient: (loss, invariance, prior, grad1, grad2); no need, empty gradients."""
    h1, h2 = _rows(h1), _rows(h2)
    grad1, grad2 = (torch.empty_like(h) if need_grad else h.new_empty(0) for h in (h1, h2))
    if prior_probs is not None:
        prior_probs = prior_probs.to(torch.float32).contiguous()
    invariance, prior_value = _core.cplearn_loss(
        _target, _codes(dictionary), h1.data_ptr(), h2.data_ptr(), h1.shape[0], temperature, beta,
        _PRIOR_NUMBERS[prior], _address(prior_probs), _address(grad1), _address(grad2), _threads(),
    )  # fmt: skip
    values = (prior_value + beta * invariance, invariance, prior_value)
    terms = (torch.tensor(value, dtype=torch.float32) for value in values)
    return (*terms, grad1, grad2)


class Shard:
    """One range of codes against all rows of a group of ranks: the steps between which the ranks combine numbers.

    `row_sums` of each view, then `combine` with what all ranks found, then either `mean_assignment` or `code_sums` and,
    with those of all ranks added, `gradients`. Row-wise arguments and results are float64, view 0's rows first.
    """

    LOG_UNIT = math.log(2)  # logits are in powers of two
    ROW_SCALARS = _core.row_scalars if _core else 0

    def __init__(self, dictionary: Dictionary, temperature: float, num_views: int):
        # One instruction set for all steps: others round a row's best logit differently.
        self._target, self._codes, self._temperature = _target, _codes(dictionary), temperature
        self._num_features, self._num_codes = dictionary.num_features, dictionary.num_codes
        self._views, self._code = [None] * num_views, [None] * num_views

    def row_sums(self, view, h):
        """(best logit, sum of 2^(logit - best) over the other codes) of each row, among the codes of this range."""
        h = _rows(h)
        best, others = torch.empty(2, h.shape[0], dtype=torch.float64)
        code = torch.empty(h.shape[0], dtype=torch.int64)
        out = tuple(map(_address, (best, others, code)))
        _core.row_sums(self._target, self._codes, h.data_ptr(), h.shape[0], self._temperature, out, _threads())
        self._views[view], self._code[view] = h, code
        return best, others

    def combine(self, best, others, mine):
        """The same of all ranges; `mine` where the best code is the one that `row_sums` found here."""
        code = torch.cat(self._code).masked_fill_(~mine, -1)
        self._all = (best.contiguous(), others.contiguous(), code)

    def mean_assignment(self):
        """p̄ of the codes of this range."""
        (h,) = self._views
        out = h.new_empty(self._num_codes)
        if not _finite(h):
            return out.fill_(torch.nan)
        _core.shard_mean_assignment(
            self._target, self._codes, h.data_ptr(), h.shape[0], self._bests(), self._temperature, out.data_ptr(),
            _threads(),
        )  # fmt: skip
        return out

    def code_sums(self, beta, prior, prior_probs, need_grad):
        """(scalars `(ROW_SCALARS, 2 n)`, prior of both views): this range's share. Row 0: `sum_j p_ij log(c p'_ij)`."""
        h1, h2 = self._views
        n, self._beta, self._sums = h1.shape[0], beta, (None, None)
        if need_grad:
            self._sums = torch.empty(2, _core.shard_size(self._target, self._codes, n), dtype=torch.float64)
        scalars = torch.empty(self.ROW_SCALARS, 2 * n, dtype=torch.float64)
        if prior_probs is not None:
            prior_probs = prior_probs.to(torch.float32).contiguous()
        prior_value = _core.shard_sums(
            self._target, self._codes, h1.data_ptr(), h2.data_ptr(), n, self._bests(), self._temperature, beta,
            _PRIOR_NUMBERS[prior], _address(prior_probs), scalars.data_ptr(), *map(_address, self._sums), _threads(),
        )  # fmt: skip
        return scalars, torch.tensor(prior_value, dtype=torch.float64)

    def gradients(self, scalars):
        """This range's share of dL/dh of both views, `(2 n, f)`, from the sums of all ranks' `scalars`."""
        scalars = scalars.contiguous()
        n, f = self._views[0].shape
        grad = torch.empty(2 * n, f)
        _core.shard_gradients(
            self._target, self._codes, n, self._bests(), self._temperature, self._beta,
            scalars.data_ptr(), *map(_address, self._sums), grad.data_ptr(), _threads(),
        )  # fmt: skip
        return grad

    def _bests(self):
        return tuple(map(_address, self._all))


def projector_softmax(h, dictionary, temperature):
    """`reference.projector_softmax`, shape `(n, c)`."""
    return _of_rows(_core.projector_softmax, h, dictionary, temperature, dictionary.num_codes)


def projector_softmax_backward(upstream, h, p, dictionary, temperature):
    """`dL/dh_i = 1/temperature * sum_j p_ij (v_ij - sum_k p_ik v_ik) w_j` for `v = upstream` of shape `(n, c)`."""
    upstream, p = _rows(upstream), _rows(p)
    grad = h.new_empty(h.shape, dtype=torch.float32)
    _core.projector_softmax_backward(
        _target, _codes(dictionary), h.shape[0], upstream.data_ptr(), p.data_ptr(), temperature, grad.data_ptr(),
        _threads(),
    )  # fmt: skip
    return _nan_where_not_finite(grad, h)


def projector_logsumexp(h, dictionary, temperature):
    """`reference.projector_logsumexp`, shape `(n,)`."""
    return _of_rows(_core.projector_logsumexp, h, dictionary, temperature)


def projector_logsumexp_backward(upstream, h, dictionary, temperature):
    """`dL/dh_i = v_i B_i / temperature` for `v = upstream` of shape `(n,)`."""
    return expected_code(h, dictionary, temperature).mul_((upstream / temperature)[:, None])


def expected_code(h, dictionary, temperature):
    """`reference.expected_code`, shape `(n, f)`."""
    return _of_rows(_core.expected_code, h, dictionary, temperature, dictionary.num_features)


def expected_code_backward(upstream, h, dictionary, temperature):
    """`dL/dh_i = 1/temperature * sum_j p_ij (v_ij - sum_k p_ik v_ik) w_j` with `v_ij = upstream_i · w_j`."""
    return _backward_of_rows(_core.expected_code_backward, upstream, h, dictionary, temperature)


def mean_assignment(h, dictionary, temperature):
    """`reference.mean_assignment`, shape `(c,)`."""
    h = _rows(h)
    out = h.new_empty(dictionary.num_codes)
    if not _finite(h):
        return out.fill_(torch.nan)
    _core.mean_assignment(
        _target, _codes(dictionary), h.data_ptr(), h.shape[0], temperature, out.data_ptr(), _threads()
    )
    return out


def mean_assignment_backward(upstream, h, dictionary, temperature):
    """`dL/dh_i = 1/(n temperature) * sum_j p_ij (v_j - sum_k p_ik v_k) w_j` for `v = upstream` of shape `(c,)`."""
    return _backward_of_rows(_core.mean_assignment_backward, upstream, h, dictionary, temperature)


def assign(h, dictionary, top_k):
    """`reference.assign` by a running top-k: (scores, codes)."""
    h = _rows(h)
    scores = h.new_empty(h.shape[0], top_k)
    codes = torch.empty(h.shape[0], top_k, dtype=torch.int64)
    _core.assign(
        _target, _codes(dictionary), h.data_ptr(), h.shape[0], top_k, scores.data_ptr(), codes.data_ptr(), _threads()
    )
    return _nan_where_not_finite(scores, h), codes


def _of_rows(kernel, h, dictionary, temperature, *width):
    """The result, of shape `(n, *width)`, of a kernel that treats each row for itself."""
    h = _rows(h)
    out = h.new_empty(h.shape[0], *width)
    kernel(_target, _codes(dictionary), h.data_ptr(), h.shape[0], temperature, out.data_ptr(), _threads())
    return _nan_where_not_finite(out, h)


def _backward_of_rows(kernel, upstream, h, dictionary, temperature):
    h, upstream = _rows(h), _rows(upstream)
    grad = torch.empty_like(h)
    kernel(
        _target, _codes(dictionary), h.data_ptr(), h.shape[0], upstream.data_ptr(), temperature, grad.data_ptr(),
        _threads(),
    )  # fmt: skip
    return _nan_where_not_finite(grad, h)


def _rows(h: torch.Tensor) -> torch.Tensor:
    return h.detach().to(torch.float32).contiguous()


def _finite(h: torch.Tensor) -> bool:
    return bool(torch.isfinite(h).all())


def _nan_where_not_finite(result: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """The kernels promise nothing for rows that hold a NaN or an infinity: such a row's result is NaN."""
    if not _finite(h):
        result[~torch.isfinite(h).all(dim=1)] = torch.nan
    return result


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None or tensor.numel() == 0 else tensor.data_ptr()


def _threads() -> int:
    return torch.get_num_threads()


def _codes(dictionary: Dictionary):
    num_features, num_codes = dictionary.num_features, dictionary.num_codes
    first_code, total_codes = dictionary.first_code, dictionary.total_codes
    if dictionary.kind == "dense":
        signs = dictionary.signs
        codes = _core.Codes(
            _KINDS["dense"], num_features, num_codes, 0, 0, 0, signs.data_ptr(), first_code, total_codes
        )
        codes.signs = signs
        return codes
    return _generated_codes(dictionary.kind, num_features, num_codes, dictionary.seed, first_code, total_codes)


@functools.lru_cache(maxsize=16)
def _generated_codes(kind: str, num_features: int, num_codes: int, seed: int, first_code: int, total_codes: int):
    """The core's description of a dictionary; it carries the tensor of positions that it points into."""
    if kind == "rademacher":
        return _core.Codes(_KINDS[kind], num_features, num_codes, seed, 0, 0, 0, first_code, total_codes)
    log2_block = (num_features - 1).bit_length()
    positions = philox.injection(seed, num_features, 1 << log2_block).to(torch.int32)
    codes = _core.Codes(
        _KINDS[kind], num_features, num_codes, seed, log2_block, positions.data_ptr(), 0, first_code, total_codes
    )
    codes.positions = positions
    return codes
