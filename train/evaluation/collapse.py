"""Measures of four collapses of embeddings: to a point, to few clusters, to few dimensions, within clusters."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

MIXTURE_SIZES = (10, 20, 50, 100, 200)
"""Numbers of components K of the Gaussian mixtures."""
MIXTURE_ROWS = 5000
"""Most rows a mixture is fitted to: five mixtures of 128 coordinates then take seconds."""
VARIANCE_FLOOR = 1e-6
"""Added to every variance of a mixture, in units of the mean variance of a coordinate: points have finite entropy."""


def embedding_std(h: Tensor) -> float:
    """Standard deviation over samples of the unit-length rows of h `(N, f)`, averaged over the f coordinates.

    Near 1/sqrt(f) for embeddings spread over the sphere, 0 when all are one point (representation collapse).
    Raises ValueError if h is not a finite matrix with a row.
    """
    return float(_unit_rows(h).std(0, unbiased=False).mean())


def code_counts(clusters: Tensor) -> Tensor:
    """How many samples each used cluster has, most used first; clusters int64 `(N,)`, result int64 `(used,)`."""
    return clusters.unique(return_counts=True)[1].sort(descending=True).values


def perplexity(counts: Tensor) -> float:
    """exp of the entropy of cluster sizes `(used,)`: the number of clusters in even use; 1 under full cluster collapse.

    Raises ValueError unless the counts are at least 0 and one is positive: shares of nothing have no entropy.
    """
    total = counts.double().sum()
    if not (total > 0 and bool((counts >= 0).all())):
        raise ValueError(f"counts were {counts.tolist()[:5]}, expected numbers of at least 0 with a positive sum")
    p = counts.double() / total
    return float((-torch.xlogy(p, p).sum()).exp())


def singular_values(h: Tensor) -> Tensor:
    """Singular values of the matrix h `(N, f)`, largest first, float64 `(min(N, f),)`.

    Raises ValueError if h is not a finite matrix with a row.
    """
    return torch.linalg.svdvals(_rows(h))


def effective_rank(h: Tensor) -> float:
    """RankMe (Garrido et al., 2023): exp of the entropy of the singular values of h `(N, f)`, as shares of their sum.

    Between 1 (every row on one line: dimensional collapse) and min(N, f). Zero for an all-zero h.
    Raises ValueError if h is not a finite matrix with a row.
    """
    s = singular_values(h)
    if s.sum() == 0:
        return 0.0
    return perplexity(s)


def within_class_scatter(h: Tensor, labels: Tensor) -> float:
    """Share of the variance of the unit-length rows of h `(N, f)` that lies within classes, labels int64 `(N,)`.

    0 when each class is one point (intracluster collapse), 1 when the classes differ in nothing. Where there is no
    variance at all, the share is 0.
    Raises ValueError if h is not a finite matrix with a row.
    """
    h = _unit_rows(h)
    total = (h - h.mean(0)).square().sum()
    within = sum((h[labels == k] - h[labels == k].mean(0)).square().sum() for k in labels.unique())
    return float(within / total) if _varies(h) else 0.0


def mixture_measures(h: Tensor) -> dict[str, float]:
    """`mixture_scatter_K` and `mixture_entropy_K` of h `(N, f)` for every K of MIXTURE_SIZES, see `mixture`.

    A K above a fifth of the rows is left out: with fewer than five rows a component is a point whatever the embeddings
    are. Of more than MIXTURE_ROWS rows, a fixed random choice of so many is taken.
    Raises ValueError if h is not a finite matrix with a row.
    """
    h = _rows(h)
    if len(h) > MIXTURE_ROWS:
        h = h[torch.randperm(len(h), generator=torch.Generator().manual_seed(0))[:MIXTURE_ROWS]]
    found = {}
    for size in MIXTURE_SIZES:
        if size <= len(h) // 5:
            found[f"mixture_scatter_{size}"], found[f"mixture_entropy_{size}"] = mixture(h, size)
    return found


def mixture(h: Tensor, components: int) -> tuple[float, float]:
    """How tight the clusters are that a Gaussian mixture finds among the unit-length rows of h `(N, f)`.

    A mixture of diagonal Gaussians is fitted by expectation maximisation from k-means (the best of five starts: one
    that puts two clusters together would make points look like clusters with an extent). With its responsibilities:

    scatter  the share of the variance that lies within components: 1 when there are no clusters, 0 when they are points
    entropy  the mean differential entropy of a component less that of one diagonal Gaussian fitted to all rows, in
             nats per coordinate: 0 when there are no clusters. Every variance has VARIANCE_FLOOR mean variances added,
             so that K points give ½ log VARIANCE_FLOOR = -6.9 and not minus infinity.

    Both are 0 where there is no variance at all: nothing is left to be divided.
    Raises ValueError if h is not a finite matrix with at least as many rows as components.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    h = _unit_rows(h)
    if not 1 <= components <= len(h):
        raise ValueError(f"components were {components}, expected 1 to the number of rows, {len(h)}")
    if not _varies(h):
        return 0.0, 0.0
    centred = h - h.mean(0)
    # A mean variance of 1, so that VARIANCE_FLOOR and the tolerances mean the same for every embedding.
    x = (centred / centred.square().mean().sqrt()).numpy()
    with warnings.catch_warnings():
        # Fewer distinct points than components is what a collapse looks like, and a result for this purpose.
        warnings.simplefilter("ignore", ConvergenceWarning)
        start = np.eye(components)[KMeans(components, n_init=5, random_state=0).fit(x).labels_]
        weights, means, variances = _moments(x, start)
        fitted = GaussianMixture(
            components,
            covariance_type="diag",
            reg_covar=VARIANCE_FLOOR,
            random_state=0,
            max_iter=50,
            weights_init=weights,
            means_init=means,
            precisions_init=1 / (variances + VARIANCE_FLOOR),
        ).fit(x)
        weights, means, variances = _moments(x, fitted.predict_proba(x))
    scatter = float((weights @ variances).sum() / x.var(0).sum())
    ratios = np.log((variances + VARIANCE_FLOOR) / (x.var(0) + VARIANCE_FLOOR))
    return min(max(scatter, 0.0), 1.0), float(weights @ ratios.mean(1)) / 2


def _moments(x: np.ndarray, responsibilities: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weights `(K,)`, means `(K, f)` and variances `(K, f)` of components with given responsibilities `(N, K)`."""
    # An empty component gets a weight of nearly zero, the mean 0 and the variance 0; as a start it must not be zero.
    sums = responsibilities.sum(0) + 10 * np.finfo(np.float64).eps
    means = responsibilities.T @ x / sums[:, None]
    variances = responsibilities.T @ np.square(x) / sums[:, None] - np.square(means)
    return sums / sums.sum(), means, np.maximum(variances, 0)


def _rows(h: Tensor) -> Tensor:
    """h as a float64 matrix on the CPU; ValueError unless it is a finite matrix with a row and a column."""
    if h.ndim != 2 or 0 in h.shape:
        raise ValueError(f"embeddings had the shape {tuple(h.shape)}, expected (N, f) with N and f at least 1")
    h = h.detach().double().cpu()
    if not bool(h.isfinite().all()):
        bad = int((~h.isfinite()).any(1).sum())
        raise ValueError(f"embeddings had {bad} rows of {len(h)} with numbers that are not finite, expected none")
    return h


def _unit_rows(h: Tensor) -> Tensor:
    return torch.nn.functional.normalize(_rows(h), dim=1)


def _varies(h: Tensor) -> bool:
    """Whether rows differ by more than rounding errors, a share of which would mean nothing."""
    return bool((h - h.mean(0)).square().sum() > 1e-12 * len(h))
