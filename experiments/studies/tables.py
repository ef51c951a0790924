"""`python -m experiments.studies.tables FILE.json ...`: means and intervals over the seeds, in Markdown."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats
from tabulate import tabulate

from train.errors import InputError, exit_status
from train.files import read_json

MEASURES = {
    "linear_probe": "linear probe",
    "knn": "k-NN",
    "nmi": "NMI",
    "ami": "AMI",
    "kmeans_nmi": "k-means NMI",
    "view_agreement": "view agreement",
    "codes_used": "clusters used",
    "perplexity": "perplexity",
    "effective_rank": "effective rank",
    "embedding_std": "std × √f",
    "mixture_scatter_10": "scatter, K = 10",
    "mixture_scatter_200": "scatter, K = 200",
    "mixture_entropy_10": "entropy, K = 10",
}
"""Keys of a summary in the order of the tables' columns, and what the columns are called."""
COLLAPSES = ("representation", "cluster", "dimensional", "intracluster")


def values(arm: dict[str, Any], measure: str) -> np.ndarray:
    """One number for each run of an arm, float64 (runs,); the standard deviation in units of 1/√f."""
    scale = math.sqrt(arm["runs"][0]["num_features"]) if measure == "embedding_std" else 1.0
    return np.array([run[measure] * scale for run in arm["runs"]], dtype=np.float64)


def half_interval(sample: np.ndarray) -> float:
    """Half of the 95 % confidence interval of the mean (Student's t); NaN for fewer than two numbers."""
    if len(sample) < 2:
        return math.nan
    return float(stats.t.ppf(0.975, len(sample) - 1) * sample.std(ddof=1) / math.sqrt(len(sample)))


def cell(sample: np.ndarray, signed: bool = False) -> str:
    """`mean ± half interval`, with two digits of the interval, at most 4 behind the point; without one, by the mean."""
    mean, half = float(sample.mean()), half_interval(sample)
    if half > 0:
        digits = min(max(1 - math.floor(math.log10(half)), 0), 4)
    else:
        digits = 0 if abs(mean) >= 100 else 1 if abs(mean) >= 10 else 3
    sign = "+" if signed else ""
    # A dash where one seed allows no interval: the reader must not take it for an exact number.
    return f"{mean:{sign}.{digits}f} ± {'–' if math.isnan(half) else f'{half:.{digits}f}'}"


def means_table(study: dict[str, Any]) -> str:
    """A row for each arm with every measure, and the collapses that the verdicts found."""
    rows = [
        [arm["label"], *(cell(values(arm, measure)) for measure in MEASURES), collapses_found(arm)]
        for arm in study["arms"]
    ]
    return _markdown(["", *MEASURES.values(), "collapses found"], rows)


def collapses_found(arm: dict[str, Any]) -> str:
    """`dimensional, 3 of 3` for each collapse that a verdict found in a run of the arm, or `none, 3 of 3`.

    A collapse that was not judged is not counted as absent: `cluster not judged, 3 of 3`.
    """
    runs, found = arm["runs"], []
    for words, verdict in (("", True), (" not judged", None)):
        counts = {name: sum(run["verdicts"][name]["collapsed"] is verdict for run in runs) for name in COLLAPSES}
        found += [f"{name}{words}, {count} of {len(runs)}" for name, count in counts.items() if count]
    return "; ".join(found) or f"none, {len(runs)} of {len(runs)}"


def read_study(path: Path) -> dict[str, Any]:
    """The content of a file that `python -m experiments.studies` wrote; InputError if it is none."""
    expected = "a file that python -m experiments.studies wrote"
    study = read_json(path, expected)
    try:
        for key in ("question", "baseline", "data", "steps"):
            study[key]
        measured = [run[key] for arm in study["arms"] for run in arm["runs"] for key in (*MEASURES, "verdicts", "seed")]
        if not measured or not all(arm["runs"] and arm["label"] and "options" in arm for arm in study["arms"]):
            raise ValueError("an arm without runs")
        if study["baseline"] not in [arm["label"] for arm in study["arms"]]:
            raise ValueError("no arm with the baseline's name")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} held another object ({type(error).__name__}: {error}), expected {expected}."
        ) from None
    return study


def differences_table(study: dict[str, Any]) -> str:
    """Every arm minus the baseline, over the seeds that both have: what the two have in common cancels."""
    baseline = next(arm for arm in study["arms"] if arm["label"] == study["baseline"])
    rows = []
    for arm in study["arms"]:
        by_seed = [{run["seed"]: run for run in either["runs"]} for either in (arm, baseline)]
        own, same = (
            {"runs": [runs[seed] for seed in sorted(by_seed[0].keys() & by_seed[1].keys())]} for runs in by_seed
        )
        if arm is not baseline and own["runs"]:
            pairs = [(values(own, measure), values(same, measure)) for measure in MEASURES]
            rows.append([arm["label"], *(cell(mine - theirs, signed=True) for mine, theirs in pairs)])
    return _markdown([f"minus {study['baseline']}", *MEASURES.values()], rows)


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)


def text(study: dict[str, Any]) -> str:
    """Heading, what was run, and both tables."""
    seeds = ", ".join(map(str, sorted({run["seed"] for arm in study["arms"] for run in arm["runs"]})))
    missing = f" Not finished: {'; '.join(study['missing'])}." if "missing" in study else ""
    return (
        f"### {study['question']}\n\n{study['data']}, {study['steps']:,} steps, seeds {seeds}; mean ± half of the 95 % "
        f"interval over the seeds.{missing}\n\n{means_table(study)}\n\n{differences_table(study)}\n"
    )


def main(arguments: list[str] | None = None) -> int:
    """The command; its exit status (0, or 2 for a file that is no study)."""
    parser = argparse.ArgumentParser(prog="python -m experiments.studies.tables", description=__doc__)
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE.json", help="written by python -m experiments.studies"
    )
    files = parser.parse_args(arguments).files
    return exit_status(lambda: [print(text(read_study(path))) for path in files])


if __name__ == "__main__":
    sys.exit(main())
