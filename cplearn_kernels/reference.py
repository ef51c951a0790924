"""The oracle: every public function in plain PyTorch, any dtype, differentiable by autograd. It is the specification.

All of it materialises the `(n, c)` logits. With `s = h W / temperature` and `p = softmax(s)` per row, the formulas
are those of Sansone, Lebailly, Tuytelaars, "Collapse-Proof Non-Contrastive Self-Supervised Learning" (ICML 2025),
written with log-softmax and log-sum-exp so that nothing finite becomes NaN. Half-precision inputs are computed in
float32. Arguments are taken as they are; the checks live in `functional`.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, overload

import torch

from .dictionary import Dictionary
from .options import Prior

LossAndTerms: TypeAlias = tuple[torch.Tensor, dict[str, torch.Tensor]]


def logits(h: torch.Tensor, dictionary: Dictionary, *, temperature: float) -> torch.Tensor:
    """`s_ij = h_i · w_j / temperature`, shape `(n, c)`."""
    h = _at_least_float32(h)
    with torch.autocast(h.device.type, enabled=False):
        return (h / temperature) @ dictionary.to_dense(dtype=h.dtype, device=h.device)


def projector_softmax(h: torch.Tensor, dictionary: Dictionary, *, temperature: float) -> torch.Tensor:
    """`p_ij = exp(s_ij) / sum_k exp(s_ik)`, shape `(n, c)`."""
    return torch.softmax(logits(h, dictionary, temperature=temperature), dim=1)


def projector_logsumexp(h: torch.Tensor, dictionary: Dictionary, *, temperature: float) -> torch.Tensor:
    """`lse_i = log sum_j exp(s_ij)`, shape `(n,)`."""
    return torch.logsumexp(logits(h, dictionary, temperature=temperature), dim=1)


def expected_code(h: torch.Tensor, dictionary: Dictionary, *, temperature: float) -> torch.Tensor:
    """`B_i = sum_j p_ij w_j`, shape `(n, f)`."""
    p = projector_softmax(h, dictionary, temperature=temperature)
    with torch.autocast(p.device.type, enabled=False):
        return p @ dictionary.to_dense(dtype=p.dtype, device=p.device).T


def mean_assignment(h: torch.Tensor, dictionary: Dictionary, *, temperature: float) -> torch.Tensor:
    """`p̄_j = (1/n) sum_i p_ij`, shape `(c,)`."""
    return projector_softmax(h, dictionary, temperature=temperature).mean(dim=0)


def assign(h: torch.Tensor, dictionary: Dictionary, *, top_k: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """The `top_k` codes with the largest `h_i · w_j` per row, best first, equal scores by index: (scores, codes)."""
    scores = logits(h, dictionary, temperature=1.0)
    best = torch.sort(scores, dim=1, descending=True, stable=True)
    return best.values[:, :top_k], best.indices[:, :top_k]


def prior_term(log_mean: torch.Tensor, prior: Prior, prior_probs: torch.Tensor | None) -> torch.Tensor:
    """The prior term of one view from `log p̄`, shape `(c,)`.

    "reverse_kl": `sum_j p̄_j log(p̄_j / q_j)`; "cross_entropy": `-sum_j q_j log p̄_j`. q is uniform when None.
    """
    num_codes = log_mean.shape[0]
    if prior == "reverse_kl":
        log_q = -math.log(num_codes) if prior_probs is None else prior_probs.to(log_mean).log()
        return (log_mean.exp() * (log_mean - log_q)).sum()
    if prior_probs is None:
        return -log_mean.mean()
    return -(prior_probs.to(log_mean) * log_mean).sum()


@overload
def cplearn_loss(
    h1: torch.Tensor, h2: torch.Tensor, dictionary: Dictionary, *, temperature: float, beta: float = ...,
    prior: Prior = ..., prior_probs: torch.Tensor | None = ..., return_terms: Literal[False] = ...,
) -> torch.Tensor: ...  # fmt: skip


@overload
def cplearn_loss(
    h1: torch.Tensor, h2: torch.Tensor, dictionary: Dictionary, *, temperature: float, beta: float = ...,
    prior: Prior = ..., prior_probs: torch.Tensor | None = ..., return_terms: bool,
) -> torch.Tensor | LossAndTerms: ...  # fmt: skip


def cplearn_loss(
    h1: torch.Tensor,
    h2: torch.Tensor,
    dictionary: Dictionary,
    *,
    temperature: float,
    beta: float = 1.0,
    prior: Prior = "reverse_kl",
    prior_probs: torch.Tensor | None = None,
    return_terms: bool = False,
) -> torch.Tensor | LossAndTerms:
    """`L = 1/2 sum over both orders (a, b) of [prior(a) + beta * invariance(a -> b)]`, a 0-d tensor.

    `invariance(a -> b) = -(1/n) sum_ij p^a_ij log p^b_ij`; the target gets a gradient too.
    """
    log_p = [torch.log_softmax(logits(h, dictionary, temperature=temperature), dim=1) for h in (h1, h2)]
    rows = log_p[0].shape[0]
    priors = [prior_term(torch.logsumexp(lp, dim=0) - math.log(rows), prior, prior_probs) for lp in log_p]
    invariances = [-(log_p[a].exp() * log_p[b]).sum(dim=1).mean() for a, b in ((0, 1), (1, 0))]
    prior_mean, invariance_mean = (priors[0] + priors[1]) / 2, (invariances[0] + invariances[1]) / 2
    loss = prior_mean + beta * invariance_mean
    if return_terms:
        return loss, {"invariance": invariance_mean.detach(), "prior": prior_mean.detach()}
    return loss


def _at_least_float32(h: torch.Tensor) -> torch.Tensor:
    return h.float() if h.dtype in (torch.float16, torch.bfloat16) else h
