"""`python -m experiments.studies.figures FILE.json PICTURE.png`: a study's measures, drawn."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.studies.tables import half_interval, read_study, values
from train.errors import InputError, exit_status

PANELS = (
    ("accuracy", ("linear_probe", "knn")),
    ("agreement", ("nmi", "ami", "kmeans_nmi", "view_agreement")),
    ("spread: std × √f", ("embedding_std",)),
    ("clusters", ("codes_used", "perplexity")),
    ("effective rank of the embeddings", ("effective_rank",)),
    ("scatter within clusters", ("mixture_scatter_10", "mixture_scatter_200")),
)
"""Label of the axis and the measures of each panel; the last four are those of the verdicts."""
COLOURS = ("#2166ac", "#d6604d", "#4d9221", "#777777")


def draw(study: dict[str, Any]) -> Figure:
    """Every panel's measures against the arms; against the number of codes where that is what the arms differ in."""
    arms = study["arms"]
    codes = [arm["options"].get("num_codes") for arm in arms]
    numeric = len(set(codes)) == len(arms) and None not in codes
    x = np.array(codes if numeric else range(len(arms)))
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    for axes, (label, measures) in zip(figure.subplots(2, 3).flat, PANELS):
        for measure, colour in zip(measures, COLOURS):
            _points(axes, x, arms, measure, colour, "o-" if numeric else "o")
            _threshold(axes, arms, measure)
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8)
        if numeric:
            axes.set_xscale("log")
            axes.set_xlabel("codes c")
        else:
            axes.set_xticks(list(x), [arm["label"] for arm in arms], rotation=20, ha="right", fontsize=8)
            axes.set_xlim(-0.5, len(arms) - 0.5)
        if label == "clusters":
            axes.set_yscale("log")
    figure.suptitle(f"{study['question']}  {study['data']}, {study['steps']:,} steps, {_seeds(arms)}", fontsize=9)
    return figure


def _points(axes: Axes, x: np.ndarray, arms: list[dict[str, Any]], measure: str, colour: str, style: str) -> None:
    """Means with their intervals; hollow where one seed has none, so that it is not taken for an exact number."""
    samples = [values(arm, measure) for arm in arms]
    halves, means = (np.array([of(sample) for sample in samples]) for of in (half_interval, np.mean))
    alone = np.isnan(halves)
    axes.errorbar(x, means, np.where(alone, 0, halves), fmt=style, ms=4, color=colour, label=measure.replace("_", " "))
    axes.plot(x[alone], means[alone], "o", ms=4, color=colour, markerfacecolor="white")


def _threshold(axes: Axes, arms: list[dict[str, Any]], measure: str) -> None:
    """A line where a verdict judges this measure by the same threshold in every run."""
    levels = {
        verdict["threshold"]
        for arm in arms
        for run in arm["runs"]
        for verdict in run["verdicts"].values()
        if verdict.get("measure") == measure
    }
    if len(levels) == 1:
        scale = math.sqrt(arms[0]["runs"][0]["num_features"]) if measure == "embedding_std" else 1.0
        axes.axhline(levels.pop() * scale, color="#777777", ls="--", lw=1, label="collapsed below")


def _seeds(arms: list[dict[str, Any]]) -> str:
    counts = sorted({len(arm["runs"]) for arm in arms})
    if counts == [1]:
        return "one seed"
    hollow = " (hollow: one seed, none)" if counts[0] == 1 else ""
    return f"{' or '.join(map(str, counts))} seeds, 95 % intervals{hollow}"


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit status (0, or 2 for a file that is no study or a picture that cannot be written)."""
    parser = argparse.ArgumentParser(prog="python -m experiments.studies.figures", description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE.json", help="written by python -m experiments.studies")
    parser.add_argument("picture", type=Path, metavar="PICTURE.png", help="where to draw it")
    options = parser.parse_args(arguments)
    return exit_status(lambda: _write(options.file, options.picture))


def _write(file: Path, picture: Path) -> None:
    figure = draw(read_study(file))
    try:
        figure.savefig(picture, dpi=90)
    except (OSError, ValueError) as error:
        raise InputError(
            f"The picture was {picture}, expected a file that can be written, with the ending of a kind of picture "
            f"({error})."
        ) from None


if __name__ == "__main__":
    sys.exit(main())
