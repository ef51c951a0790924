"""Backend "triton": every function on GPUs, for Hadamard, Rademacher and dense ±1 dictionaries, without a compiler.

Each function computes the formula of the function of the same name in `reference.py`: products on the tensor cores with
float16 halves of the data (22 bits) and exact ±1, sums in float32, sums across tiles in float64. Memory is
O(n f + 2^22), whatever c is, but for `projector_softmax`, whose result is n x c. No call waits for the device.
`backends/interface.py` says what each function gets and returns.

Under TRITON_INTERPRET=1 the same kernels run on CPU tensors, slowly: that is how they are tested without a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
from torch import Tensor

from ...dictionary import Dictionary
from ...options import KINDS
from .. import interface, sign_codes
from ..arguments import as_float32
from ..results import best_of_chunks, loss_terms, no_gradients, with_nan_rows
from .tuning import architecture, verified

try:
    import triton

    from .codes import codes_of
    from .kernels import constants
    from .launches import LOG2_E, Batch
    from .pieces import cut
    from .shard import Shard
    from .sums import Weights, weighted_codes

    _import_error = ""
except ImportError as error:
    triton, _import_error = None, str(error)

NAME = "triton"
FUNCTIONS, DICTIONARIES, DTYPES = interface.FUNCTIONS, KINDS, sign_codes.DTYPES

# The oldest version that the kernels have been compiled with.
_OLDEST = (3, 6)


def unavailable() -> str | None:
    if triton is None:
        return f"Triton cannot be imported: {_import_error}"
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < _OLDEST:
        return f"it needs Triton {'.'.join(map(str, _OLDEST))} or later, found {triton.__version__}"
    if _interpreted() or torch.cuda.is_available():
        return None
    return "no GPU that PyTorch can use (TRITON_INTERPRET=1 runs it on CPU tensors, for tests)"


def unsupported_device(device: torch.device) -> str | None:
    if _interpreted():
        return None if device.type == "cpu" else f"TRITON_INTERPRET is set: it serves CPU tensors, got one on {device}"
    return None if device.type == "cuda" else f"it serves tensors on a GPU, got one on {device}"


def unsupported_dictionary(dictionary: Dictionary) -> str | None:
    return sign_codes.unsupported(dictionary, sign_codes.MAX_FEATURES, sign_codes.MAX_CODES)


def reservation(dictionary: Dictionary, device: torch.device) -> str | None:
    if _interpreted():
        return "the interpreter is for tests"
    arch = architecture(device)
    untested = None if arch in verified() else f"its tests have not been run on {arch}: name it to use it"
    return sign_codes.lacks_precision(dictionary) or untested


def description() -> str:
    if _interpreted():
        return f"Triton {triton.__version__} kernels in the interpreter, on CPU tensors: for tests"
    arch = architecture(torch.device("cuda", torch.cuda.current_device()))
    state = "tested on it" if arch in verified() else "not yet tested on it: runs when named"
    return f"Triton {triton.__version__} kernels on {torch.cuda.get_device_name()}, {arch}, {state}"


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
    """Four passes over the codes, p̄ complete for a span of codes at a time: best codes, column sums, row sums, and, for
    the gradient, one sum of codes weighted as docs/mathematics.md derives. Beyond 2^22 codes the column sums are made
    twice, because the row sums of all codes come before the first weight.
    """
    shard = Shard(dictionary, temperature, 2)
    shard.take_whole(h1, h2)
    scalars, prior_sum = shard.code_sums(beta, prior, prior_probs, need_grad)
    terms = loss_terms(scalars, prior_sum, dictionary.total_codes, beta, torch.float32)
    if not need_grad:
        return *terms, *no_gradients(h1, torch.float32)
    grad1, grad2 = (h.new_empty(h.shape, dtype=torch.float32) for h in (h1, h2))
    shard.write_gradients(scalars, [grad1, grad2])
    return *terms, grad1, grad2


def projector_softmax(h: Tensor, dictionary: Dictionary, temperature: float) -> Tensor:
    batch = _batch([h], dictionary, temperature)
    batch.find_best()
    p = torch.empty(batch.n, dictionary.num_codes, device=h.device)
    batch.probabilities(p, 0, dictionary.num_codes)
    return p


def projector_softmax_backward(
    upstream: Tensor, h: Tensor, p: Tensor, dictionary: Dictionary, temperature: float
) -> Tensor:
    batch = _batch([h], dictionary, temperature)
    p, upstream = as_float32(p), as_float32(upstream)
    batch.code.fill_(-1)  # all codes are summed alike: p and v are given, so no digits are lost at the best one
    batch.set_centre((p * upstream).sum(1, dtype=torch.float64))
    sums = weighted_codes(batch, Weights(constants.GIVEN.value, given=(p, upstream)))
    share = torch.zeros(batch.total, dtype=torch.float64, device=h.device)
    return with_nan_rows(_result(batch, sums, share, 1 / temperature), h)


def projector_logsumexp(h: Tensor, dictionary: Dictionary, temperature: float) -> Tensor:
    batch = _batch([h], dictionary, temperature)
    batch.find_best()
    return batch.logsumexp()


def expected_code(h: Tensor, dictionary: Dictionary, temperature: float) -> Tensor:
    batch = _batch([h], dictionary, temperature)
    batch.find_best()
    sums = weighted_codes(batch, _expected(batch))
    return _result(batch, sums, batch.best_probability(), 1.0)


def expected_code_backward(upstream: Tensor, h: Tensor, dictionary: Dictionary, temperature: float) -> Tensor:
    """The mean of v over a row is `upstream_i · B_i`; its part without the row's best code comes from B without it."""
    batch = _batch([h, upstream.to(torch.float32)], dictionary, temperature, second_factor=1.0)
    batch.code.fill_(-1)
    batch.find_best(view=0)
    sums = weighted_codes(batch, _expected(batch))
    none = torch.zeros(batch.total, dtype=torch.float64, device=h.device)
    others = (_result(batch, sums, none, 1.0).double() * upstream).sum(1)
    p, away = (part[: batch.n] for part in (batch.best_probability(), batch.other_probability()))
    value = batch.products_at_best()[: batch.n].double()
    batch.set_centre(others + p * value)
    none[: batch.n] = p * (away * value - others)
    sums = weighted_codes(batch, Weights(constants.SECOND.value, lambda start, length: batch.rows))
    return _result(batch, sums, none, 1 / temperature)


def mean_assignment(h: Tensor, dictionary: Dictionary, temperature: float) -> Tensor:
    batch = _batch([h], dictionary, temperature)
    batch.find_best()
    return batch.mean_assignment()


def mean_assignment_backward(upstream: Tensor, h: Tensor, dictionary: Dictionary, temperature: float) -> Tensor:
    batch = _batch([h], dictionary, temperature)
    batch.find_best()
    v = as_float32(upstream)[None]
    weights = Weights(constants.CENTRED.value, lambda start, length: v[:, start : start + length])
    state = batch.empty_state()
    for start, length in batch.spans():
        batch.row_sums(state, start, length, weights.slopes(start, length), weights.mode)
    share = batch.finish_row_sums(state, 0.0)
    sums = weighted_codes(batch, weights)
    return _result(batch, sums, share, 1 / (batch.n * temperature))


def assign(h: Tensor, dictionary: Dictionary, top_k: int) -> tuple[Tensor, Tensor]:
    """For more than the best, by sorting chunks of scores."""
    batch = Batch([h.detach()], codes_of(dictionary, h.device), [1.0])
    if top_k == 1:
        batch.find_best()
        return batch.best_scores()
    block = batch.codes.block
    chunk = -(-max(1024, sign_codes.SCORES_AT_ONCE // batch.n) // block) * block

    def chunks() -> Iterator[tuple[int, Tensor]]:
        for start, count in cut(0, dictionary.num_codes, chunk):
            scores = batch.empty(batch.n, count)
            batch.probabilities(scores, start, count, scores=True)
            yield start, scores

    return best_of_chunks(chunks(), top_k)


def _batch(
    views: list[Tensor], dictionary: Dictionary, temperature: float, second_factor: float | None = None
) -> Batch:
    factor = LOG2_E / temperature
    views = [view.detach() for view in views]
    return Batch(views, codes_of(dictionary, views[0].device), [factor, second_factor or factor])


def _expected(batch: Batch) -> Weights:
    return Weights(constants.EXPECTED.value, lambda start, length: batch.rows)


def _result(batch: Batch, sums: Tensor, share: Tensor, factor: float) -> Tensor:
    """`factor * (sums + share * w_best)`, `(n, f)`, of the first view's rows."""
    out = batch.empty(batch.n, batch.codes.num_features)
    batch.finish_sums(sums, share, factor, [out])
    return out


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") == "1"
