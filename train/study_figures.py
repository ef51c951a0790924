"""`python -m train.study_figures FILE.json PICTURE.png`: the measures of a study's arms as a picture, with intervals."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from train.study_tables import half_interval, values

PANELS = (
    ("accuracy", ("linear_probe", "knn")),
    ("agreement", ("nmi", "ami", "kmeans_nmi", "view_agreement")),
    ("effective rank of the embeddings", ("effective_rank",)),
    ("clusters", ("codes_used", "perplexity")),
)
"""Label of the axis and the measures of each panel."""
COLOURS = ("#2166ac", "#d6604d", "#4d9221", "#777777")


def draw(study: dict[str, Any]) -> Figure:
    """Every panel's measures against the arms; against the number of codes where that is what the arms differ in."""
    arms = study["arms"]
    codes = [arm["options"].get("num_codes") for arm in arms]
    numeric = len(set(codes)) == len(arms) and None not in codes
    x = codes if numeric else range(len(arms))
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    for axes, (label, measures) in zip(figure.subplots(2, 2).flat, PANELS):
        for measure, colour in zip(measures, COLOURS):
            samples = [values(arm, measure) for arm in arms]
            halves = np.nan_to_num([half_interval(sample) for sample in samples])
            axes.errorbar(x, [sample.mean() for sample in samples], halves, fmt="o-" if numeric else "o", ms=4, capsize=3,
                          color=colour, label=measure.replace("_", " "))
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
    runs = max(len(arm["runs"]) for arm in arms)
    figure.suptitle(f"{study['question']}  {study['data']}, {study['steps']:,} steps, {runs} seeds, 95 % intervals", fontsize=9)
    return figure


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit status (0, or 2 for a file that is no study or a picture that cannot be written)."""
    parser = argparse.ArgumentParser(prog="python -m train.study_figures", description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE.json", help="written by python -m train.studies")
    parser.add_argument("picture", type=Path, metavar="PICTURE.png", help="where to draw it")
    options = parser.parse_args(arguments)
    try:
        figure = draw(json.loads(options.file.read_text()))
        figure.savefig(options.picture, dpi=100)
    except (OSError, ValueError, KeyError) as error:
        print(f"error: {options.file} or {options.picture} could not be used ({type(error).__name__}: {error}), expected a "
              f"file of python -m train.studies and a picture's name.", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
