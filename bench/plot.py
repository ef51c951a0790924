"""Draws time and memory against the number of codes, from what `--benchmark-json=FILE` of `pytest bench/` wrote."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot

from bench.cases import LIBRARY, TITLES
from bench.results import ResultsError, latest, load
from bench.targets import MEGABYTE

# Okabe and Ito's colours, which stay apart for colour-blind readers; dashes and markers tell f.
_COLOURS = {LIBRARY: "#0072B2", "eager": "#D55E00", "tidy": "#009E73", "compiled": "#CC79A7"}
_FEATURE_STYLES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))

# Where "no growth" is drawn on a logarithmic axis; the kernel's own count of resident pages is no finer.
_SMALLEST_MB = 0.1

Series = dict[tuple[str, int], list[tuple[int, float]]]


def series(entries: Sequence[Mapping[str, Any]], n: int) -> tuple[Series, Series]:
    """Seconds of forward + backward, and megabytes, against c: points by (implementation, f), sorted by c.

    An implementation's memory is the growth of the peak during the call plus the dense codes it holds, which is what c
    costs its user. Only Hadamard cases with `n` rows per view are taken, so that a line varies in c alone, and not the
    library on one thread, which has few.
    """
    times: Series = {}
    memory: Series = {}
    for entry in sorted(entries, key=lambda entry: entry["extra_info"]["num_codes"]):
        info = entry["extra_info"]
        wanted = {"n": n, "dictionary": "hadamard", "function": "cplearn_loss", "case": entry["group"]}
        if info["implementation"] not in _COLOURS or not wanted.items() <= info.items():
            continue
        key, c = (info["implementation"], info["num_features"]), info["num_codes"]
        times.setdefault(key, []).append((c, entry["stats"]["median"]))
        if found := info.get("memory"):
            megabytes = (found["growth_bytes"] + found["codes_bytes"]) / MEGABYTE
            memory.setdefault(key, []).append((c, max(megabytes, _SMALLEST_MB)))
    return times, memory


def draw(record: Mapping[str, Any], path: Path, n: int = 64) -> None:
    """Writes the picture, two panels side by side, as PNG (or what the suffix of `path` says)."""
    matplotlib.use("Agg")  # no display needed
    times, memory = series(record["benchmarks"], n)
    if not times:
        sizes = ", ".join(map(str, sorted({entry["extra_info"]["n"] for entry in record["benchmarks"]})))
        raise ResultsError(f"no measured case with n = {n}; the record has n = {sizes or 'nothing'}")
    order = list(TITLES)
    features = sorted({f for _, f in [*times, *memory]})
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    panels = ((times, "seconds, forward + backward"), (memory, "MB: peak growth of a call + codes held"))
    for axis, (lines, label) in zip(axes, panels, strict=True):
        for (name, f), points in sorted(lines.items(), key=lambda item: (item[0][1], order.index(item[0][0]))):
            dash, marker = _FEATURE_STYLES[features.index(f) % len(_FEATURE_STYLES)]
            style = {"marker": marker, "markersize": 4.5, "color": _COLOURS[name], "label": f"{TITLES[name]}, f = {f}"}
            axis.plot(*zip(*points, strict=True), dash, **style)
        axis.set_xscale("log", base=2)
        axis.set(yscale="log", xlabel="number of codes c", ylabel=label)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="x-small", frameon=False)
    machine = record["machine"]
    where = f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}, {machine['date']}"
    figure.suptitle(f"cplearn_loss, n = {n}: {where}", fontsize="medium")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Draws one results file."""
    parser = argparse.ArgumentParser(prog="python -m bench.plot", description=__doc__.splitlines()[0])
    parser.add_argument("json", nargs="?", type=Path, help="results file (default: the latest in bench/results)")
    parser.add_argument("--output", type=Path, help="picture to write (default: beside the JSON, as .png)")
    parser.add_argument("--n", type=int, default=64, help="rows per view of the lines drawn (default: 64)")
    given = parser.parse_args(arguments)
    try:
        path = given.json or latest()
        output = given.output or path.with_suffix(".png")
        draw(load(path), output, given.n)
    except ResultsError as error:
        print(f"bench.plot: {error}", file=sys.stderr)
        return 1
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
