"""The public functions: each checks its arguments, documents itself, and hands over to an operator or the oracle."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from . import ops, reference, validation
from .dictionary import Dictionary
from .distributed import groups
from .distributed.argument_check import Call
from .distributed.oracle import everyones_rows
from .options import BackendName, Group, Prior, Rows
from .reference import LossAndTerms


@overload
def cplearn_loss(
    h1: Tensor, h2: Tensor, dictionary: Dictionary, *, temperature: float, beta: float = ..., prior: Prior = ...,
    prior_probs: Tensor | None = ..., return_terms: Literal[False] = ..., process_group: Group = ..., rows: Rows = ...,
    backend: BackendName | None = ...,
) -> Tensor: ...  # fmt: skip


@overload
def cplearn_loss(
    h1: Tensor, h2: Tensor, dictionary: Dictionary, *, temperature: float, beta: float = ..., prior: Prior = ...,
    prior_probs: Tensor | None = ..., return_terms: Literal[True], process_group: Group = ..., rows: Rows = ...,
    backend: BackendName | None = ...,
) -> LossAndTerms: ...  # fmt: skip


@overload
def cplearn_loss(
    h1: Tensor, h2: Tensor, dictionary: Dictionary, *, temperature: float, beta: float = ..., prior: Prior = ...,
    prior_probs: Tensor | None = ..., return_terms: bool, process_group: Group = ..., rows: Rows = ...,
    backend: BackendName | None = ...,
) -> Tensor | LossAndTerms: ...  # fmt: skip


def cplearn_loss(
    h1: Tensor,
    h2: Tensor,
    dictionary: Dictionary,
    *,
    temperature: float,
    beta: float = 1.0,
    prior: Prior = "reverse_kl",
    prior_probs: Tensor | None = None,
    return_terms: bool = False,
    process_group: Group = None,
    rows: Rows = "sharded",
    backend: BackendName | None = None,
) -> Tensor | LossAndTerms:
    """The CPLearn loss of two views, symmetric in them, with memory that does not depend on the number of codes.

    With `P = softmax(h W / temperature)` per view and p̄ its mean over the batch,
    `L = 1/2 sum over both orders (a, b) of [prior(a) + beta * invariance(a -> b)]`, where
    `invariance(a -> b) = -(1/n) sum_ij p^a_ij log p^b_ij` (the target gets a gradient too) and prior(a) is
    `KL(p̄ || q)` for "reverse_kl" or `CE(q, p̄)` for "cross_entropy".

    Args:
        h1, h2: embeddings of the two views, shape `(n, num_features)`, float32, bfloat16, float16 (or float64 on the
            "reference" and "torch" backends), same dtype and device; any strides. A NaN or an infinity in either makes
            the loss NaN, and the gradients of all rows of that view and of the partners of its rows.
        dictionary: the codes; no gradient flows into them.
        temperature: a positive number, see `default_temperature`.
        beta: weight of the invariance term, >= 0.
        prior: "reverse_kl" (the authors' code) or "cross_entropy" (the paper's formula).
        prior_probs: q, floating-point, shape `(num_codes,)`, summing to 1; positive under "reverse_kl". None: uniform.
        return_terms: also return `{"invariance": ..., "prior": ...}`, detached, each the mean over both orders.
        process_group: the processes that compute one loss together, each with a share of the codes: a ProcessGroup,
            or "world" for the default group as it is at the time of the call. None: this process alone. All ranks call
            alike, in the same order; docs/scaling.md says what is sent, and what happens when a rank fails.
        rows: with a process group, "sharded": each rank hands in its part of the batch, of any size, and the loss is
            that of all parts together, the same number on every rank; "replicated": every rank hands in the same rows.
        backend: see `backends()`; None picks the fastest that can serve the call. The same on every rank.

    Returns:
        0-d tensor (float64 for float64 inputs, else float32), differentiable once in h1 and h2 (any number of times
        with `backend="reference"`). With `return_terms`, `(loss, terms)`.

        Over sharded rows each rank's gradient is the number of ranks times dL/dh of its rows, because
        DistributedDataParallel and FSDP average gradients over ranks: those of the parameters are then the ones of a
        single process with the whole batch. Over replicated rows it is dL/dh.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, shape or range, a process group that is not initialised;
            nothing has been computed then. On all ranks, if they differ in an argument (the sentence says which).
        RuntimeError: the named backend cannot serve the call, or another rank failed or died (it is named).
        NotImplementedError: a second derivative on a fused backend.

    Source: Sansone, Lebailly, Tuytelaars, "Collapse-Proof Non-Contrastive Self-Supervised Learning" (ICML 2025).

    Example:
        >>> d = HadamardDictionary(num_features=128, num_codes=16384)
        >>> cplearn_loss(h1, h2, d, temperature=default_temperature(128, 16384)).backward()
    """

    def check() -> tuple[float, float]:
        validation.check_embeddings("h1", h1, dictionary)
        validation.check_embeddings("h2", h2, dictionary)
        validation.check_pair(h1, h2)
        validation.check_prior(prior, prior_probs, dictionary.num_codes)
        validation.check_backend(backend)
        if prior_probs is not None and prior_probs.device != h1.device:
            raise ValueError(f"prior_probs: expected a tensor on {h1.device} like h1, got {prior_probs.device}")
        # Of the others the operator does it, which alone is there when a compiled function runs.
        if backend == "reference" and prior_probs is not None and not torch.compiler.is_compiling():
            validation.check_prior_values(prior, prior_probs)
        return validation.check_temperature(temperature), validation.check_beta(beta)

    temperature, beta = groups.checked(check, process_group, rows)
    if prior_probs is not None and prior_probs.requires_grad:
        prior_probs = prior_probs.detach()
    need_grad = torch.is_grad_enabled() and (h1.requires_grad or h2.requires_grad)
    if backend == "reference":
        if process_group is not None:
            call = Call("cplearn_loss", backend, dictionary, h1.dtype, rows, h1.shape[0], temperature, beta, prior,
                        prior_probs, need_grad=need_grad)  # fmt: skip
            h1, h2 = everyones_rows(process_group, call, [h1, h2])
        return reference.cplearn_loss(
            h1, h2, dictionary, temperature=temperature, beta=beta, prior=prior, prior_probs=prior_probs,
            return_terms=return_terms,
        )  # fmt: skip
    loss, invariance, prior_value, _, _ = ops.call_loss(
        h1, h2, prior_probs, *ops.dictionary_arguments(dictionary), temperature, beta, prior, need_grad, backend or "",
        groups.name_of(process_group), rows,
    )  # fmt: skip
    if return_terms:
        return loss, {"invariance": invariance.detach(), "prior": prior_value.detach()}
    return loss


def projector_softmax(
    h: Tensor, dictionary: Dictionary, *, temperature: float, backend: BackendName | None = None
) -> Tensor:
    """`P = softmax(h W / temperature)` over the codes.

    Args:
        h: embeddings `(n, num_features)`, any floating dtype the backend serves, any strides.
        dictionary: the codes.
        temperature: a positive number.
        backend: see `backends()`.

    Returns:
        `(n, num_codes)`, float64 for float64 inputs, else float32; differentiable once in h. This is the one function
        whose result grows with n times c.

    Raises:
        TypeError, ValueError: bad arguments. RuntimeError: the named backend cannot serve the call.

    Example:
        >>> projector_softmax(h, d, temperature=0.6).sum(1)     # ones
    """
    return _unary("projector_softmax", h, dictionary, temperature, backend)


def projector_logsumexp(
    h: Tensor, dictionary: Dictionary, *, temperature: float, backend: BackendName | None = None
) -> Tensor:
    """`lse_i = log sum_j exp(h_i · w_j / temperature)`, natural logarithm.

    Args, Raises: as for `projector_softmax`.

    Returns:
        `(n,)`, float64 for float64 inputs, else float32; differentiable once in h, gradient `B_i / temperature`.

    Example:
        >>> projector_logsumexp(h, d, temperature=0.6).shape
        torch.Size([256])
    """
    return _unary("projector_logsumexp", h, dictionary, temperature, backend)


def expected_code(
    h: Tensor, dictionary: Dictionary, *, temperature: float, backend: BackendName | None = None
) -> Tensor:
    """`B_i = sum_j p_ij w_j`, the mean code under a row's softmax: attention whose keys and values are the codes.

    Args, Raises: as for `projector_softmax`.

    Returns:
        `(n, num_features)`, float64 for float64 inputs, else float32; differentiable once in h.

    Example:
        >>> expected_code(h, d, temperature=0.6).abs().max() <= 1     # a convex combination of ±1 vectors
    """
    return _unary("expected_code", h, dictionary, temperature, backend)


def mean_assignment(
    h: Tensor,
    dictionary: Dictionary,
    *,
    temperature: float,
    process_group: Group = None,
    rows: Rows = "sharded",
    backend: BackendName | None = None,
) -> Tensor:
    """`p̄_j = (1/n) sum_i p_ij`, the batch mean of P.

    Args, Raises: as for `projector_softmax`; process_group and rows as for `cplearn_loss`.

    Returns:
        `(num_codes,)`, float64 for float64 inputs, else float32; differentiable once in h. With a process group it is
        the mean over the rows of all ranks, the whole of it on every rank: the one function whose traffic grows with
        the number of codes. Gradients as for `cplearn_loss`.

    Example:
        >>> mean_assignment(h, d, temperature=0.6).sum()     # 1
    """
    if process_group is None:
        return _unary("mean_assignment", h, dictionary, temperature, backend)

    def check() -> float:
        validation.check_embeddings("h", h, dictionary)
        validation.check_backend(backend)
        return validation.check_temperature(temperature)

    temperature = groups.checked(check, process_group, rows)
    if backend == "reference":
        call = Call("mean_assignment", backend, dictionary, h.dtype, rows, h.shape[0], temperature)
        (h,) = everyones_rows(process_group, call, [h])
        return reference.mean_assignment(h, dictionary, temperature=temperature)
    group = groups.name_of(process_group)
    return ops.mean_assignment_over_ranks(
        h, *ops.dictionary_arguments(dictionary), temperature, backend or "", group, rows
    )[0]


def assign(
    h: Tensor,
    dictionary: Dictionary,
    *,
    top_k: int = 1,
    process_group: Group = None,
    rows: Rows = "sharded",
    backend: BackendName | None = None,
) -> tuple[Tensor, Tensor]:
    """The codes with the largest inner product, per row, without ever forming the `(n, c)` scores.

    Args:
        h: embeddings `(n, num_features)`.
        dictionary: the codes.
        top_k: how many codes per row, 1 <= top_k <= num_codes.
        process_group, rows: as for `cplearn_loss`: the rows of all ranks are looked up together, each rank in its
            share of the codes. The result is the same as that of every rank looking up its own rows alone.
        backend: see `backends()`.

    Returns:
        `(scores, codes)`, each `(n, top_k)`, best first, equal scores by index: `scores = h_i · w_j` (no temperature),
        float64 for float64 inputs, else float32; codes int64. No gradient. A row that holds a NaN or an infinity gets
        scores that are not finite and codes of no meaning.

    Raises:
        TypeError, ValueError: bad arguments. RuntimeError: the named backend cannot serve the call, or a rank failed.

    Example:
        >>> scores, codes = assign(h, d)
        >>> codes[:, 0].unique().numel()     # codes used by the batch
    """

    def check() -> None:
        validation.check_embeddings("h", h, dictionary)
        validation.check_top_k(top_k, dictionary.num_codes)
        validation.check_backend(backend)

    groups.checked(check, process_group, rows)
    if backend == "reference":
        with torch.no_grad():
            if process_group is not None:
                # The oracle looks through all codes for the rows of this rank.
                call = Call("assign", backend, dictionary, h.dtype, rows, h.shape[0], top_k=top_k)
                everyones_rows(process_group, call, [])
            return reference.assign(h, dictionary, top_k=top_k)
    group = groups.name_of(process_group)
    return ops.assign(h.detach(), *ops.dictionary_arguments(dictionary), top_k, backend or "", group, rows)


def _unary(name: str, h: Tensor, dictionary: Dictionary, temperature: float, backend: BackendName | None) -> Tensor:
    validation.check_embeddings("h", h, dictionary)
    temperature = validation.check_temperature(temperature)
    validation.check_backend(backend)
    if backend == "reference":
        return getattr(reference, name)(h, dictionary, temperature=temperature)
    return getattr(ops, name)(h, *ops.dictionary_arguments(dictionary), temperature, backend or "")
