"""Backend "triton": every function on GPUs, for Hadamard, Rademacher and dense ±1 dictionaries, without a compiler.

Each function computes the formula of the function of the same name in `reference.py`: products on the tensor cores with
float16 halves of the data (22 bits) and exact ±1, sums in float32, sums across tiles in float64. Memory is
O(n f + 2^22), whatever c is, but for `projector_softmax`, whose result is n x c. No call waits for the device.

Under TRITON_INTERPRET=1 the same kernels run on CPU tensors, slowly: that is how they are tested without a GPU.
"""

from __future__ import annotations

import math
import os

import torch

from ...dictionary import Dictionary
from .. import sign_codes

try:
    import triton

    from .batch import LOG2_E, Batch
    from .codes import codes_of
    from .tuning import architecture, verified
    from .kernels.constants import CENTRED, EXPECTED, GIVEN, SECOND
    from .shard import Shard
    from .sums import weighted_codes
except ImportError as error:
    triton, _import_error = None, str(error)

NAME = "triton"
# A dense dictionary is served if all entries are ±1: `Dictionary.signs` then holds them packed to bits.
DICTIONARIES = ("hadamard", "rademacher", "dense")
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
FUNCTIONS = (
    "cplearn_loss", "projector_softmax", "projector_logsumexp", "expected_code", "mean_assignment", "assign",
)  # fmt: skip

# The oldest version that the kernels have been compiled with.
_OLDEST = (3, 6)
_MAX_FEATURES = 8192
_MAX_CODES = 1 << 30
# Scores that `assign` holds at a time for top_k > 1.
_SCORES = 1 << 22


def unavailable() -> str | None:
    """Why this backend cannot run on this machine, or None."""
    if triton is None:
        return f"Triton cannot be imported: {_import_error}"
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < _OLDEST:
        return f"it needs Triton {'.'.join(map(str, _OLDEST))} or later, found {triton.__version__}"
    if _interpreted() or torch.cuda.is_available():
        return None
    return "no GPU that PyTorch can use (TRITON_INTERPRET=1 runs it on CPU tensors, for tests)"


def unsupported_device(device: torch.device) -> str | None:
    """Why tensors on `device` cannot be used, or None."""
    if _interpreted():
        return None if device.type == "cpu" else f"TRITON_INTERPRET is set: it serves CPU tensors, got one on {device}"
    return None if device.type == "cuda" else f"it serves tensors on a GPU, got one on {device}"


def unsupported_dictionary(dictionary: Dictionary) -> str | None:
    """Why the codes of `dictionary` cannot be used, or None."""
    return sign_codes.unsupported(dictionary, _MAX_FEATURES, _MAX_CODES)


def reservation(dictionary: Dictionary, device: torch.device) -> str | None:
    """Why a call that names no backend should not come here, or None."""
    if _interpreted():
        return "the interpreter is for tests"
    if dictionary.num_features <= 16:
        return "float32 logits lack precision for 16 features and fewer"
    if architecture(device) not in verified():
        return f"its tests have not been run on {architecture(device)}: name it to use it"
    return None


def description() -> str:
    """One line on what runs."""
    if _interpreted():
        return f"Triton {triton.__version__} kernels in the interpreter, on CPU tensors: for tests"
    arch = architecture(torch.device("cuda", torch.cuda.current_device()))
    state = "tested on it" if arch in verified() else "not yet tested on it: runs when named"
    return f"Triton {triton.__version__} kernels on {torch.cuda.get_device_name()}, {arch}, {state}"


def cplearn_loss(h1, h2, dictionary, temperature, beta, prior, prior_probs, need_grad):
    """`reference.cplearn_loss` with its gradient: (loss, invariance, prior, grad1, grad2); no need, empty gradients.

    Four passes over the codes, p̄ complete for a span of codes at a time: best codes, column sums, row sums, and, for
    the gradient, one sum of codes weighted as docs/mathematics.md derives. Beyond 2^22 codes the column sums are made
    twice, because the row sums of all codes come before the first weight.
    """
    shard = Shard(dictionary, temperature, 2)
    shard.take_whole(h1, h2)
    scalars, prior_value = shard.code_sums(beta, prior, prior_probs, need_grad)
    invariance, prior_value = math.log(dictionary.total_codes) - scalars[0].mean(), prior_value / 2
    terms = tuple(term.to(torch.float32) for term in (prior_value + beta * invariance, invariance, prior_value))
    if not need_grad:
        return *terms, h1.new_empty(0, dtype=torch.float32), h1.new_empty(0, dtype=torch.float32)
    gradients = [h.new_empty(h.shape, dtype=torch.float32) for h in (h1, h2)]
    shard.write_gradients(scalars, gradients)
    return *terms, *gradients


def projector_softmax(h, dictionary, temperature):
    """`reference.projector_softmax`, shape `(n, c)`."""
    batch = _batch([h], dictionary, temperature)
    batch.find_best()
    p = torch.empty(batch.n, dictionary.num_codes, device=h.device)
    batch.probabilities(p, 0, dictionary.num_codes)
    return p


def projector_softmax_backward(upstream, h, p, dictionary, temperature):
    """`dL/dh_i = 1/temperature * sum_j p_ij (v_ij - sum_k p_ik v_ik) w_j` for `v = upstream` of shape `(n, c)`."""
    batch = _batch([h], dictionary, temperature)
    p, upstream = p.contiguous(), upstream.to(torch.float32).contiguous()
    batch.code.fill_(-1)  # all codes are summed alike: p and v are given, so no digits are lost at the best one
    batch.set_centre((p * upstream).sum(1, dtype=torch.float64))
    sums = weighted_codes(batch, GIVEN, None, given=(p, upstream))
    share = torch.zeros(batch.total, dtype=torch.float64, device=h.device)
    return _nan_where_not_finite(_result(batch, sums, share, 1 / temperature), h)


def projector_logsumexp(h, dictionary, temperature):
    """`reference.projector_logsumexp`, shape `(n,)`."""
    batch = _batch([h], dictionary, temperature)
    batch.find_best()
    return batch.logsumexp()


def projector_logsumexp_backward(upstream, h, dictionary, temperature):
    """`dL/dh_i = v_i B_i / temperature` for `v = upstream` of shape `(n,)`."""
    return expected_code(h, dictionary, temperature).mul_((upstream / temperature)[:, None])


def expected_code(h, dictionary, temperature):
    """`reference.expected_code`, shape `(n, f)`."""
    batch = _batch([h], dictionary, temperature)
    batch.find_best()
    sums = weighted_codes(batch, EXPECTED, lambda start, length: batch.rows)
    return _result(batch, sums, batch.best_probability(), 1.0)


def expected_code_backward(upstream, h, dictionary, temperature):
    """`dL/dh_i = 1/temperature * sum_j p_ij (v_ij - sum_k p_ik v_ik) w_j` with `v_ij = upstream_i · w_j`.

    The mean of v over a row is `upstream_i · B_i`; its part without the row's best code is found from B without it.
    """
    batch = _batch([h, upstream.to(torch.float32)], dictionary, temperature, second_factor=1.0)
    batch.code.fill_(-1)
    batch.find_best(view=0)
    sums = weighted_codes(batch, EXPECTED, lambda start, length: batch.rows)
    none = torch.zeros(batch.total, dtype=torch.float64, device=h.device)
    others = (_result(batch, sums, none, 1.0).double() * upstream).sum(1)
    p, away = (part[: batch.n] for part in (batch.best_probability(), batch.other_probability()))
    value = batch.products_at_best()[: batch.n].double()
    batch.set_centre(others + p * value)
    none[: batch.n] = p * (away * value - others)
    sums = weighted_codes(batch, SECOND, lambda start, length: batch.rows)
    return _result(batch, sums, none, 1 / temperature)


def mean_assignment(h, dictionary, temperature):
    """`reference.mean_assignment`, shape `(c,)`."""
    batch = _batch([h], dictionary, temperature)
    batch.find_best()
    return batch.mean_assignment()


def mean_assignment_backward(upstream, h, dictionary, temperature):
    """`dL/dh_i = 1/(n temperature) * sum_j p_ij (v_j - sum_k p_ik v_k) w_j` for `v = upstream` of shape `(c,)`."""
    batch = _batch([h], dictionary, temperature)
    batch.find_best()
    upstream = upstream.to(torch.float32).contiguous()
    state = batch.empty_state()
    for start, length in batch.spans():
        batch.row_sums(state, start, length, upstream[None, start : start + length], CENTRED)
    share = batch.finish_row_sums(state, 0.0)
    sums = weighted_codes(batch, CENTRED, lambda start, length: upstream[None, start : start + length])
    return _result(batch, sums, share, 1 / (batch.n * temperature))


def assign(h, dictionary, top_k):
    """`reference.assign`: (scores, codes); for more than the best, by sorting chunks of scores."""
    batch = Batch([h.detach()], codes_of(dictionary, h.device), [1.0])
    if top_k == 1:
        batch.find_best()
        return batch.best_scores()
    block = batch.codes.block
    chunk = -(-max(1024, _SCORES // batch.n) // block) * block

    def write_scores(out, start):
        batch.probabilities(out, start, out.shape[1], scores=True)

    return sign_codes.best_of_chunks(write_scores, batch.n, dictionary.num_codes, chunk, top_k, h.device)


def _batch(views, dictionary, temperature, second_factor=None) -> Batch:
    factor = LOG2_E / temperature
    views = [view.detach() for view in views]
    return Batch(views, codes_of(dictionary, views[0].device), [factor, second_factor or factor])


def _result(batch, sums, share, factor) -> torch.Tensor:
    """`factor * (sums + share * w_best)`, `(n, f)`, of the first view's rows."""
    out = batch.empty(batch.n, batch.codes.num_features)
    batch.finish_sums(sums, share, factor, [out])
    return out


def _nan_where_not_finite(result, h):
    """A row that holds a NaN or an infinity has a result of NaN."""
    return torch.where(torch.isfinite(h).all(dim=1, keepdim=True), result, torch.nan)


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") == "1"
