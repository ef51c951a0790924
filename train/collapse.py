"""Measures of four collapses of embeddings: to a point, to few clusters, to few dimensions, within classes."""

from __future__ import annotations

import torch
from torch import Tensor


def embedding_std(h: Tensor) -> float:
    """Standard deviation over samples of the unit-length rows of h `(N, f)`, averaged over the f coordinates.

    Near 1/sqrt(f) for embeddings spread over the sphere, 0 when all are one point (representation collapse).
    """
    return float(torch.nn.functional.normalize(h.double(), dim=1).std(0, unbiased=False).mean())


def code_counts(clusters: Tensor) -> Tensor:
    """How many samples each used cluster has, most used first; clusters int64 `(N,)`, result int64 `(used,)`."""
    return clusters.unique(return_counts=True)[1].sort(descending=True).values


def perplexity(counts: Tensor) -> float:
    """exp of the entropy of cluster sizes: the number of clusters in even use; 1 under full cluster collapse."""
    p = counts.double() / counts.sum()
    return float((-torch.xlogy(p, p).sum()).exp())


def singular_values(h: Tensor) -> Tensor:
    """Singular values of the matrix h `(N, f)`, largest first, float64 `(min(N, f),)`."""
    return torch.linalg.svdvals(h.double())


def effective_rank(h: Tensor) -> float:
    """RankMe (Garrido et al., 2023): exp of the entropy of the singular values of h `(N, f)`, as shares of their sum.

    Between 1 (every row on one line: dimensional collapse) and min(N, f). Zero for an all-zero h.
    """
    s = singular_values(h)
    if s.sum() == 0:
        return 0.0
    return perplexity(s)


def within_class_scatter(h: Tensor, labels: Tensor) -> float:
    """Share of the variance of the unit-length rows of h `(N, f)` that lies within classes, labels int64 `(N,)`.

    0 when each class is one point (intracluster collapse), 1 when the classes differ in nothing. Where there is no
    variance at all, the share is 0.
    """
    h = torch.nn.functional.normalize(h.double(), dim=1)
    total = (h - h.mean(0)).square().sum()
    within = sum((h[labels == k] - h[labels == k].mean(0)).square().sum() for k in labels.unique())
    # Equal rows differ from their mean by rounding errors, a share of which would mean nothing.
    return float(within / total) if total > 1e-12 * len(h) else 0.0
