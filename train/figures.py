"""The pictures of a report, each a function from arrays to a matplotlib figure."""

from __future__ import annotations

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from train import collapse

BLUE, ORANGE, GREEN, GREY = "#2166ac", "#d6604d", "#4d9221", "#777777"
MOST_ROWS = 600
"""Rows drawn of a class-sorted similarity matrix: about one per pixel."""


def loss_curve(history: list[dict[str, float]], lines: dict[str, float]) -> Figure:
    """Mean loss per epoch, with the levels that the method says belong on every plot of it."""
    figure, axes = _axes("epoch", "loss", whole_numbers=True)
    axes.plot([row["epoch"] for row in history], [row["loss"] for row in history], "o-", color=BLUE, ms=3, label="loss")
    for (label, level), style in zip(lines.items(), ("--", ":", "-.")):
        axes.axhline(level, color=GREY, ls=style, label=f"{label} = {level:.2f}")
    # Room above the highest level, so that the legend covers none of them.
    axes.margins(y=0.3)
    axes.legend(fontsize=8, loc="upper right")
    return figure


def term_curves(history: list[dict[str, float]]) -> Figure:
    """Every term of the loss per epoch."""
    names = [name for name in (history[0] if history else {}) if name not in ("epoch", "step", "lr", "loss")]
    figure, axes = _axes("epoch", "mean over the epoch", whole_numbers=True)
    for name, colour in zip(names, (ORANGE, GREEN, BLUE)):
        axes.plot([row["epoch"] for row in history], [row[name] for row in history], "o-", color=colour, ms=3,
                  label=name)
    axes.legend(fontsize=8)
    return figure


def spectrum(embeddings: Tensor) -> Figure:
    """Singular values of the unit-length embeddings `(N, f)`, in units of sqrt(N / f): all 1 when evenly spread."""
    n, f = embeddings.shape
    values = collapse.singular_values(torch.nn.functional.normalize(embeddings, dim=1)) / (n / f) ** 0.5
    figure, axes = _axes("index", r"singular value / $\sqrt{N/f}$")
    axes.plot(range(1, len(values) + 1), values, color=BLUE)
    axes.axhline(1, color=GREY, ls="--", label="all equal: every dimension in use")
    # A rank-deficient matrix has values at rounding error, which would take up the whole of a logarithmic axis.
    axes.set_yscale("log")
    axes.set_ylim(bottom=max(float(values.min()) * 0.8, 1e-4))
    axes.legend(fontsize=8)
    return figure


def code_usage(clusters: Tensor, num_codes: int) -> Figure:
    """Share of the samples of each used code, most used first; clusters int64 `(N,)`."""
    counts = collapse.code_counts(clusters)
    figure, axes = _axes("rank of the code", "share of the test images")
    axes.plot(range(1, len(counts) + 1), counts / counts.sum(), color=BLUE,
              label=f"{len(counts)} of {num_codes:,} codes used")
    level = 1 / min(num_codes, len(clusters))
    axes.axhline(level, color=GREY, ls="--", label="perfectly even use")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(level / 2, 1.2)
    axes.legend(fontsize=8)
    return figure


def feature_products(embeddings: Tensor) -> Figure:
    """(f/N) HᵀH of the unit-length embeddings: the identity when the coordinates are uncorrelated."""
    h = torch.nn.functional.normalize(embeddings, dim=1)
    figure, axes = _axes("coordinate", "coordinate")
    _matrix(figure, axes, (h.T @ h) * (h.shape[1] / h.shape[0]))
    return figure


def sample_products(embeddings: Tensor, labels: Tensor, classes: list[str]) -> Figure:
    """HHᵀ of the unit-length embeddings with the samples sorted by class; at most MOST_ROWS rows, evenly taken."""
    order = labels.argsort(stable=True)
    order = order[torch.linspace(0, len(order) - 1, min(len(order), MOST_ROWS)).long()]
    h, sorted_labels = torch.nn.functional.normalize(embeddings[order], dim=1), labels[order]
    figure, axes = _axes("test image, sorted by class", "")
    _matrix(figure, axes, h @ h.T)
    edges = np.searchsorted(sorted_labels.numpy(), np.arange(len(classes) + 1))
    axes.set_yticks((edges[:-1] + edges[1:]) / 2, classes, fontsize=7)
    axes.set_xticks([])
    return figure


def augmented_views(images: Tensor, first: Tensor, second: Tensor) -> Figure:
    """Images (uint8) above their two views (float in [0, 1]), all `(n, 3, s, s)`, one column per image."""
    rows = (("image", images.float() / 255), ("first view", first), ("second view", second))
    figure = Figure(figsize=(len(images) * 0.8 + 0.9, 2.6), layout="constrained")
    grid = figure.subplots(3, len(images), squeeze=False)
    for (name, row), line in zip(rows, grid):
        line[0].set_ylabel(name, fontsize=8)
        for axes, image in zip(line, row):
            axes.imshow(image.permute(1, 2, 0).cpu().numpy())
            axes.set_xticks([])
            axes.set_yticks([])
    return figure


def _axes(x_label: str, y_label: str, whole_numbers: bool = False):
    # Figure is used without pyplot: no window system is looked for and nothing has to be closed.
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.spines[["top", "right"]].set_visible(False)
    if whole_numbers:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def _matrix(figure: Figure, axes: matplotlib.axes.Axes, values: Tensor) -> None:
    image = axes.imshow(values.numpy(), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, shrink=0.8)
