"""What a backend offers: the functions of one module, `<backend>/functions.py`, and its `Shard`.

Embeddings and results are tensors on the device of the call, in dtypes that the backend serves; results are float64 for
float64 embeddings, else float32, and share no memory with each other. A row that holds a NaN or an infinity gets
results of NaN. Nothing here is differentiable: `ops` attaches the backward functions. Arguments have been checked.
"""

from __future__ import annotations

from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from ..dictionary import Dictionary
from ..options import Kind

# The public functions of this library that backends serve; each computes the one of the same name in `reference.py`.
FUNCTIONS = (
    "cplearn_loss",
    "projector_softmax",
    "projector_logsumexp",
    "expected_code",
    "mean_assignment",
    "assign",
)
# (loss, invariance, prior, dL/dh1, dL/dh2); the gradients are empty if none is needed.
LossResult: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class Shard(Protocol):
    """One range of codes against all rows of a group of ranks: the steps between which the ranks combine numbers.

    `row_sums` of each view, then `combine` with what all ranks found, then either `mean_assignment` or `code_sums` and,
    with those of all ranks added, `gradients`. Numbers of rows are float64 (float32 on a device without it), with the
    N rows of view 0 first where those of both views are together.

    Attributes:
        LOG_UNIT: nats per unit of the logits that `row_sums` returns.
        ROW_SCALARS: how many numbers per row `code_sums` returns.
    """

    LOG_UNIT: float
    ROW_SCALARS: int

    def __init__(self, dictionary: Dictionary, temperature: float, num_views: int) -> None:
        """The range of `dictionary` (which may be whole); 2 views for the loss, 1 for `mean_assignment`."""

    def row_sums(self, view: int, h: Tensor) -> tuple[Tensor, Tensor]:
        """(best, others) of one view's rows, `(N,)`: the largest logit s of the range; the sum of exp(s - best) over
        its other codes, in units of LOG_UNIT. NaN where a row is not finite."""
        ...

    def combine(self, best: Tensor, others: Tensor, mine: Tensor) -> None:
        """What holds for all codes, `(num_views * N,)` each; `mine`: where the best code lies in this range."""

    def mean_assignment(self) -> Tensor:
        """p̄ of the range's codes over the rows of the one view."""
        ...

    def code_sums(self, beta: float, prior: str, prior_probs: Tensor | None, need_grad: bool) -> tuple[Tensor, Tensor]:
        """(scalars `(ROW_SCALARS, 2 N)`, prior): the range's share of the sums over codes, to be added over ranges.

        The first scalar is the cross term `sum_j p_ij log(c p'_ij)`, p' of the same image's other view; the prior is
        the sum of both views'. `prior_probs` are those of the range.
        """
        ...

    def gradients(self, scalars: Tensor) -> Tensor:
        """The range's share of dL/dh of all rows, `(2 N, f)`, given the scalars of all ranges."""
        ...


class Backend(Protocol):
    """A module that serves the public functions; `select.py` chooses among them."""

    @property
    def NAME(self) -> str:
        """The name that `backend=` takes."""
        ...

    @property
    def FUNCTIONS(self) -> tuple[str, ...]:
        """Which of this file's FUNCTIONS it serves."""
        ...

    @property
    def DICTIONARIES(self) -> tuple[Kind, ...]:
        """Which kinds of dictionaries it serves."""
        ...

    @property
    def DTYPES(self) -> tuple[torch.dtype, ...]:
        """Which embeddings it serves."""
        ...

    @property
    def Shard(self) -> type[Shard]:
        """The steps on one rank's codes."""
        ...

    # ---- what it can do: a sentence why not, or None ----

    def unavailable(self) -> str | None:
        """Why this backend cannot run on this machine."""

    def unsupported_device(self, device: torch.device) -> str | None:
        """Why tensors on `device` cannot be used."""

    def unsupported_dictionary(self, dictionary: Dictionary) -> str | None:
        """Why the codes of `dictionary` cannot be used."""

    def reservation(self, dictionary: Dictionary, device: torch.device) -> str | None:
        """Why a call that names no backend should not come here."""

    def description(self) -> str:
        """One line on what runs here, where something does."""
        ...

    # ---- the functions, and dL/dh of their results; `upstream` is dL/d(result) ----

    def cplearn_loss(
        self,
        h1: Tensor,
        h2: Tensor,
        dictionary: Dictionary,
        temperature: float,
        beta: float,
        prior: str,
        prior_probs: Tensor | None,
        need_grad: bool,
    ) -> LossResult:
        """`reference.cplearn_loss` with its gradients, which are not yet multiplied with the upstream one."""
        ...

    def projector_softmax(self, h: Tensor, dictionary: Dictionary, temperature: float) -> Tensor:
        """p, `(n, c)`."""
        ...

    def projector_softmax_backward(
        self, upstream: Tensor, h: Tensor, p: Tensor, dictionary: Dictionary, temperature: float
    ) -> Tensor:
        """`dL/dh_i = 1/temperature * sum_j p_ij (v_ij - sum_k p_ik v_ik) w_j` for `v = upstream` of shape `(n, c)`."""
        ...

    def projector_logsumexp(self, h: Tensor, dictionary: Dictionary, temperature: float) -> Tensor:
        """lse, `(n,)`. Its gradient is made of `expected_code`."""
        ...

    def expected_code(self, h: Tensor, dictionary: Dictionary, temperature: float) -> Tensor:
        """B, `(n, f)`."""
        ...

    def expected_code_backward(self, upstream: Tensor, h: Tensor, dictionary: Dictionary, temperature: float) -> Tensor:
        """`dL/dh_i = 1/temperature * sum_j p_ij (v_ij - sum_k p_ik v_ik) w_j` with `v_ij = upstream_i · w_j`."""
        ...

    def mean_assignment(self, h: Tensor, dictionary: Dictionary, temperature: float) -> Tensor:
        """p̄, `(c,)`."""
        ...

    def mean_assignment_backward(
        self, upstream: Tensor, h: Tensor, dictionary: Dictionary, temperature: float
    ) -> Tensor:
        """`dL/dh_i = 1/(n temperature) * sum_j p_ij (v_j - sum_k p_ik v_k) w_j` for `v = upstream` of shape `(c,)`."""
        ...

    def assign(self, h: Tensor, dictionary: Dictionary, top_k: int) -> tuple[Tensor, Tensor]:
        """(scores, codes), each `(n, top_k)`: the best codes first, equal scores by index."""
        ...
