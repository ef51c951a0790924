"""The pictures of a report but for the map: each a function from `Source`s to a matplotlib figure.

What has one scale for all runs is drawn into the same axes; the rest gets axes for each run. Where a run lacks what a
picture needs, its axes say so.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation
from torch import Tensor

from train.evaluation import collapse
from train.reporting.sources import Source

COLOURS = ("#2166ac", "#d6604d", "#4d9221", "#8073ac", "#e08214", "#35978f", "#c51b7d", "#8c510a")
STYLES = ("-", "--", ":", "-.")
GREY = "#777777"
RED_BLUE = matplotlib.colormaps["RdBu_r"].resampled(41)
"""Steps of 0.05: as fine as an eye can tell, and a PNG file of a third of the size."""
MOST_ROWS = 360
"""Rows drawn of a sorted similarity matrix: about one per pixel."""
MOST_COORDINATES = 256
"""Coordinates drawn of HᵀH: a diagonal of more would be thinner than a pixel."""
NOT_TERMS = ("epoch", "step", "lr", "loss")


def losses(sources: list[Source]) -> Figure:
    """Mean loss per epoch, with the levels that the method says belong on every plot of it."""

    def draw(axes: Axes, source: Source) -> None:
        _lines(axes, source.history, ["loss"])
        for (label, level), style in zip(source.levels.items(), ("--", ":", "-.")):
            axes.axhline(level, color=GREY, ls=style, label=f"{label} = {level:.2f}")
        _legend_below(axes)

    return _for_each(sources, draw, "epoch", "loss", needs="history")


def terms(sources: list[Source]) -> Figure:
    """Every term of the loss per epoch."""

    def draw(axes: Axes, source: Source) -> None:
        names = [
            name
            for name, value in source.history[0].items()
            if name not in NOT_TERMS and isinstance(value, (int, float))
        ]
        if not names:
            return say(axes, "the loss has no terms of its own")
        _lines(axes, source.history, names)
        _legend_below(axes)

    return _for_each(sources, draw, "epoch", "mean over the epoch", needs="history")


def spectra(sources: list[Source]) -> Figure:
    """Singular values of the unit-length embeddings `(N, f)`, in units of sqrt(N / f): all 1 when evenly spread."""
    figure, axes = _axes("index", r"singular value / $\sqrt{N/f}$")
    lowest = 1.0
    for index, source in enumerate(sources):
        n, f = source.embeddings.shape
        values = collapse.singular_values(_unit(source.embeddings)).numpy() / math.sqrt(n / f)
        # Zero has no place on a logarithmic axis, and rounding errors would take up the whole of it.
        values = np.maximum(values, 1e-12)
        axes.plot(range(1, len(values) + 1), values, label=short(source.name), **_look(index))
        lowest = min(lowest, values.min())
    axes.axhline(1, color=GREY, ls=(0, (1, 3)), label="all equal: every dimension in use")
    axes.set_yscale("log")
    axes.set_ylim(bottom=min(max(lowest * 0.8, 1e-4), 0.1))
    _legend_below(axes)
    return figure


def code_usage(sources: list[Source]) -> Figure:
    """Share of the samples of each used cluster, most used first, and the share under perfectly even use."""
    drawn = [source for source in sources if source.clusters is not None]
    figure, axes = _axes("rank of the cluster", "share of the test images")
    if not drawn:
        say(axes, sources[0].why_absent("clusters"))
        return figure
    levels = {}
    for index, source in enumerate(drawn):
        counts = collapse.code_counts(source.clusters)
        possible = source.summary.get("num_clusters")
        label = f"{short(source.name)}: {len(counts):,} used" + (f" of {possible:,}" if possible is not None else "")
        # A lone cluster is a line of one point, which only a marker shows.
        axes.plot(range(1, len(counts) + 1), counts / counts.sum(), label=label, marker="o", **_look(index))
        if possible is not None:
            levels.setdefault(1 / min(possible, len(source.clusters)), []).append(source)
    for number, level in enumerate(sorted(levels)):
        axes.axhline(level, color=GREY, ls=STYLES[1 + number % 3], label=f"perfectly even use of {1 / level:,.0f}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(min([1 / len(source.clusters) for source in drawn] + list(levels)) / 2, 1.4)
    _legend_below(axes)
    return figure


def feature_products(sources: list[Source]) -> Figure:
    """(f/N) HᵀH of the unit-length embeddings: the identity when the coordinates are uncorrelated."""

    def draw(axes: Axes, source: Source) -> None:
        n, f = source.embeddings.shape
        h = _unit(source.embeddings)[:, :MOST_COORDINATES]
        axes.set_xlabel("coordinate" if f <= MOST_COORDINATES else f"coordinate, the first {MOST_COORDINATES} of {f:,}")
        _matrix(axes, (h.T @ h) * (f / n))

    return _with_colours(_for_each(sources, draw, "coordinate", "coordinate", square=True))


def sample_products(sources: list[Source]) -> Figure:
    """HHᵀ of the unit-length embeddings, samples sorted by class; at most MOST_ROWS rows, evenly taken.

    Without labels the samples are sorted by cluster, which the axis then says.
    """

    def draw(axes: Axes, source: Source) -> None:
        by_class = source.labels is not None
        groups = source.labels if by_class else source.clusters
        if groups is None:
            return say(axes, f"nothing to sort by: {source.why_absent('labels')}, nor clusters")
        order = _evenly(groups.argsort(stable=True), MOST_ROWS)
        h, groups = _unit(source.embeddings[order]), groups[order]
        _matrix(axes, h @ h.T)
        axes.set_xlabel("test image, sorted by class" if by_class else "test image, sorted by cluster (no labels)")
        axes.xaxis.set_major_locator(NullLocator())
        axes.yaxis.set_major_locator(NullLocator())
        if by_class and len(source.classes) <= 30:
            edges = np.searchsorted(groups.numpy(), np.arange(len(source.classes) + 1))
            axes.set_yticks((edges[:-1] + edges[1:] - 1) / 2, source.classes, fontsize=7)

    return _with_colours(_for_each(sources, draw, "", "", square=True))


def mixture_scatters(sources: list[Source], threshold: float | None) -> Figure:
    """Share of the variance within the components of Gaussian mixtures, against their number K."""
    figure, axes = _axes("components K of the mixture", "share of the variance within")
    found = False
    for index, source in enumerate(sources):
        points = sorted(
            (int(name.rpartition("_")[2]), value)
            for name, value in source.summary.items()
            if name.startswith("mixture_scatter_") and value is not None
        )
        if points:
            found = True
            axes.plot(*zip(*points), label=short(source.name), marker="o", **_look(index))
    if not found:
        say(axes, sources[0].why_absent("mixture_scatter_10"))
        return figure
    if threshold is not None:
        axes.axhline(threshold, color=GREY, ls="--", label=f"judged at K = 10: collapsed below {threshold:g}")
    axes.set_xscale("log")
    axes.set_xticks([10, 20, 50, 100, 200], ["10", "20", "50", "100", "200"])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(-0.03, 1.03)
    _legend_below(axes)
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


def panels(count: int, square: bool = False) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes, two or three in a row."""
    columns = 2 if count == 4 else min(count, 3)
    lines = math.ceil(count / columns)
    width, height = (5.2, 4.2) if count == 1 else (3.6, 3.5 if square else 3.1)
    # Figure is used without pyplot: no window system is looked for and nothing has to be closed.
    figure = Figure(figsize=(width * columns, height * lines), layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def say(axes: Axes, text: str) -> None:
    """Axes that hold a sentence instead of data."""
    axes.text(
        0.5, 0.5, textwrap.fill(text, 34), ha="center", va="center", fontsize=9, color=GREY, transform=axes.transAxes
    )
    axes.set_axis_off()


def short(name: str, most: int = 30) -> str:
    """A name for a legend or a title: its ends where it is long."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"


def _for_each(
    sources: list[Source],
    draw: Callable[[Axes, Source], None],
    x_label: str,
    y_label: str,
    needs: str | None = None,
    square: bool = False,
) -> Figure:
    """Axes for each source, drawn by `draw`, or saying why it lacks the part that it `needs`."""
    figure, grid = panels(len(sources), square)
    for axes, source in zip(grid, sources):
        _label(axes, x_label, y_label)
        if square:
            axes.set_box_aspect(1)
        if len(sources) > 1:
            axes.set_title(short(source.name), fontsize=9)
        if needs is not None and not getattr(source, needs):
            say(axes, source.why_absent(needs))
        else:
            draw(axes, source)
    return figure


def _axes(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure, (axes,) = panels(1)
    _label(axes, x_label, y_label)
    return figure, axes


def _label(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.spines[["top", "right"]].set_visible(False)


def _look(index: int) -> dict[str, str | float]:
    # Each thinner than the one before, so that of two equal curves both are seen.
    return {
        "color": COLOURS[index % len(COLOURS)],
        "ls": STYLES[index // len(COLOURS) % len(STYLES)],
        "lw": max(1.0, 2.2 - 0.4 * index),
        "ms": max(2.0, 4.5 - 0.8 * index),
    }


def _lines(axes: Axes, history: list[dict[str, float]], names: list[str]) -> None:
    epochs = [row["epoch"] for row in history]
    for index, name in enumerate(names):
        axes.plot(epochs, [row.get(name, math.nan) for row in history], label=name, marker="o", **_look(index))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _legend_below(axes: Axes) -> None:
    # Below the axes: inside, it would cover a level or the end of a curve.
    down = ScaledTranslation(0, -34 / 72, axes.figure.dpi_scale_trans)
    axes.legend(
        fontsize=8, loc="upper center", bbox_to_anchor=(0.5, 0), bbox_transform=axes.transAxes + down, frameon=False
    )


def _matrix(axes: Axes, values: Tensor) -> None:
    axes.imshow(values.numpy(), cmap=RED_BLUE, vmin=-1, vmax=1, interpolation="nearest")
    axes.spines[:].set_visible(False)


def _with_colours(figure: Figure) -> Figure:
    """A scale for all the matrices of a figure, if it has any."""
    images = [image for axes in figure.axes for image in axes.images]
    if images:
        figure.colorbar(images[0], ax=figure.axes, shrink=0.8, aspect=30)
    return figure


def _unit(embeddings: Tensor) -> Tensor:
    return torch.nn.functional.normalize(embeddings.float(), dim=1)


def _evenly(order: Tensor, most: int) -> Tensor:
    return order[torch.linspace(0, len(order) - 1, min(len(order), most)).long()]
