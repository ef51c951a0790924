"""The map of a report: embeddings in two dimensions by t-SNE, coloured by class."""

from __future__ import annotations

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from train.reporting import figures
from train.reporting.sources import Source

MOST_ROWS = 2000
"""Rows that are mapped: t-SNE takes seconds for so many, minutes for 10,000."""
PERPLEXITY = 30.0
CAPTION = (
    f"Map of the unit-length embeddings by t-SNE (scikit-learn; at most {MOST_ROWS:,} test images, evenly "
    f"taken, starting from the first two principal components, perplexity {PERPLEXITY:g}, seed 0): neighbours "
    f"are neighbours, but sizes of groups and distances between them mean nothing."
)


def maps(sources: list[Source]) -> Figure:
    """The map of each source, one colour for each class."""
    figure, grid = figures.panels(len(sources), square=True)
    for axes, source in zip(grid, sources):
        if len(sources) > 1:
            axes.set_title(figures.short(source.name), fontsize=9)
        _draw(axes, source)
    return figure


def obstacle(embeddings: Tensor) -> str | None:
    """Why embeddings `(N, f)` have no map, as a clause, or None if they have one."""
    n, f = embeddings.shape
    if n < 5:
        return f"a map takes at least 5 embeddings, and there are {n}"
    if f < 2:
        return "embeddings of one coordinate need no map"
    h = _unit(embeddings)
    # Rounding errors alone have directions too, and t-SNE would make a picture of them.
    if float((h - h.mean(0)).square().sum()) <= 1e-12 * n:
        return "all embeddings are one point: there is nothing to map"
    return None


def project(embeddings: Tensor) -> tuple[Tensor, np.ndarray]:
    """The rows that are mapped, int64 `(m,)`, and their places `(m, 2)`; `obstacle` must have nothing to say."""
    from sklearn.manifold import TSNE

    n = len(embeddings)
    rows = torch.linspace(0, n - 1, min(n, MOST_ROWS)).long()
    h = _unit(embeddings)[rows]
    h = h - h.mean(0)
    # t-SNE's search for bandwidths starts at 1: rows that differ in the sixth digit would be beyond its reach.
    h = (h / h.square().sum(1).mean().sqrt()).float().numpy()
    perplexity = min(PERPLEXITY, (len(h) - 1) / 3)
    return rows, TSNE(init="pca", perplexity=perplexity, random_state=0).fit_transform(h)


def _draw(axes: Axes, source: Source) -> None:
    if reason := obstacle(source.embeddings):
        return figures.say(axes, reason)
    rows, places = project(source.embeddings)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
    if source.labels is None:
        axes.scatter(*places.T, s=5, lw=0, color=figures.COLOURS[0])
        axes.set_xlabel(f"no colours: {source.why_absent('labels')}", fontsize=8)
        return None
    labels, count = source.labels[rows].numpy(), len(source.classes)
    if count > 20:
        axes.scatter(*places.T, s=5, lw=0, c=labels, cmap="turbo")
        axes.set_xlabel(f"{count} classes, coloured by number", fontsize=8)
        return None
    palette = matplotlib.colormaps["tab10" if count <= 10 else "tab20"]
    for number, name in enumerate(source.classes):
        axes.scatter(*places[labels == number].T, s=5, lw=0, color=palette(number), label=name)
    below = dict(loc="upper center", bbox_to_anchor=(0.5, -0.02), frameon=False)
    axes.legend(fontsize=7, markerscale=2.5, ncols=5, columnspacing=0.8, handletextpad=0.1, **below)
    return None


def _unit(embeddings: Tensor) -> Tensor:
    return torch.nn.functional.normalize(embeddings.double(), dim=1)
