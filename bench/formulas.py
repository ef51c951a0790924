"""The two formulas in plain PyTorch that the library is timed against.

Both keep the whole dictionary `weight`, shape (f, c), and whole (n, c) arrays in memory, and both leave the
gradient to autograd. They compute the loss of docs/mathematics.md with a uniform prior, "reverse_kl":

    L = 1/2 * sum over (a, b) in {(1, 2), (2, 1)} of  prior(a) + beta * invariance(a -> b)
    prior(a)           = sum_j mean_i(p^a_ij) * log(c * mean_i(p^a_ij))
    invariance(a -> b) = -1/n * sum_ij p^a_ij * log p^b_ij            (no stop-gradient)
"""

from __future__ import annotations

import torch
from torch import Tensor


def authors_loss(h1: Tensor, h2: Tensor, weight: Tensor, temperature: float, beta: float = 1.0) -> Tensor:
    """The authors' formula: a projector softmax for every p that the formula mentions, without guards.

    The reading taken here of "softmax taken eight times": each order (a, b) names p four times (twice in the prior, as
    p-bar and inside log p-bar; twice in the invariance, as p^a and inside log p^b), each mention evaluates
    `softmax(h @ weight / temperature)` anew, and there are two orders. Nothing is shared between mentions, no
    `log_softmax` is used, and nothing protects `0 * log 0`: once a mean assignment underflows, the result is NaN.

    `h1` and `h2` are the embeddings of the two views, (n, f), and `weight` the dictionary, (f, c), of the same dtype.
    The loss is a 0-d tensor, differentiable in `h1` and `h2`.
    """
    n, c = h1.shape[0], weight.shape[1]

    def assignment(h: Tensor) -> Tensor:
        return torch.softmax(h @ weight / temperature, dim=1)

    def one_order(a: Tensor, b: Tensor) -> Tensor:
        prior = torch.sum(assignment(a).mean(dim=0) * torch.log(c * assignment(a).mean(dim=0)))
        invariance = -torch.sum(assignment(a) * torch.log(assignment(b))) / n
        return prior + beta * invariance

    return 0.5 * (one_order(h1, h2) + one_order(h2, h1))


def tidy_loss(h1: Tensor, h2: Tensor, weight: Tensor, temperature: float, beta: float = 1.0) -> Tensor:
    """The same number as `authors_loss`, written with care: one `log_softmax` per view, `0 log 0 = 0`.

    This is what a careful PyTorch user would write, and what `torch.compile` is given. Arguments and result are those
    of `authors_loss`.
    """
    n, c = h1.shape[0], weight.shape[1]
    log_p1 = torch.log_softmax(h1 @ weight / temperature, dim=1)
    log_p2 = torch.log_softmax(h2 @ weight / temperature, dim=1)
    p1, p2 = log_p1.exp(), log_p2.exp()
    mean1, mean2 = p1.mean(dim=0), p2.mean(dim=0)
    prior = torch.xlogy(mean1, c * mean1).sum() + torch.xlogy(mean2, c * mean2).sum()
    invariance = -((p1 * log_p2).sum() + (p2 * log_p1).sum()) / n
    return 0.5 * (prior + beta * invariance)
