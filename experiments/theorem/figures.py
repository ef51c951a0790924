"""`python -m experiments.theorem.figures FILE.json OUT.png`: the results of experiments.theorem as a picture."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

import cplearn_kernels as cpk
from experiments.theorem import optimum, tables
from train.errors import InputError, exit_status

COLOURS = {"hadamard": "#2166ac", "rademacher": "#d6604d"}
MARKERS = {"hadamard": "o", "rademacher": "s"}
GREY = "#777777"
CODES_OF_BLOCKS = 16
"""Few enough that every block of HHᵀ is seen."""


def picture(results: dict) -> Figure:
    """Four panels: deviation from the identity, one-hotness, loss, and and HHᵀ.

    HHᵀ is not stored: its point, of CODES_OF_BLOCKS codes, is optimised again, which takes less than a second.
    """
    figure = Figure(figsize=(10, 7.4), layout="constrained")
    (deviations, one_hot), (gaps, blocks) = figure.subplots(2, 2)
    by_kind = {kind: [point for point in results["points"] if point["dictionary"] == kind] for kind in COLOURS}
    for points in by_kind.values():
        points.sort(key=lambda point: point["num_codes"])
    _deviations(deviations, by_kind)
    _one_hot(one_hot, by_kind)
    _gaps(gaps, by_kind)
    for axes in (deviations, one_hot, gaps):
        _shade_fewer_rows(axes, results["points"])
    h = _sorted_rows(optimum.Settings(**results["settings"]))
    image = blocks.imshow((h @ h.T).numpy(), cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    blocks.set_title(f"$HH^T$ sorted by code: c = {CODES_OF_BLOCKS} (Hadamard), n = {len(h)}", fontsize=10)
    blocks.set_xlabel("row")
    blocks.set_ylabel("row")
    blocks.spines[:].set_visible(False)
    figure.colorbar(image, ax=blocks, shrink=0.85, label="cosine")
    return figure


def _deviations(axes, by_kind: dict) -> None:
    _decorate(axes, r"deviation of $\frac{f}{n}H^TH$ from $I$")
    for kind, points in by_kind.items():
        _line(axes, kind, points, "deviation", label=f"H, {kind}")
        # The exact zeros of whole Hadamard blocks, up to rounding, have no place on the axis.
        seen = [point for point in points if point["deviation_of_dictionary"] > 1e-3]
        zeros = [point["num_codes"] for point in points if point not in seen]
        label = f"$WW^T/c$, {kind}" + (f" (0 from c = {zeros[0]})" if zeros else "")
        _line(axes, kind, seen, "deviation_of_dictionary", fmt=":", marker=".", label=label)
    expected = {point["num_codes"]: point["deviation_expected"] for points in by_kind.values() for point in points}
    axes.plot(sorted(expected), [expected[c] for c in sorted(expected)], color=GREY, ls="--",
              label=r"$\sqrt{f/\min(n, c)}$")  # fmt: skip
    axes.set_yscale("log")
    # Room for the legend below the lines.
    axes.set_ylim(bottom=min(point["deviation"] for points in by_kind.values() for point in points) / 20)
    axes.legend(fontsize=8, loc="lower left")


def _one_hot(axes, by_kind: dict) -> None:
    _decorate(axes, "mean over the rows")
    for kind, points in by_kind.items():
        _line(axes, kind, points, "max_p_mean", label=f"max p, {kind}")
        _line(axes, kind, points, "cosine_own_code", fmt="--", fill="none", label=f"cosine to own code, {kind}")
    predicted = {point["num_codes"]: point["max_p_predicted"] for points in by_kind.values() for point in points}
    axes.plot(sorted(predicted), [predicted[c] for c in sorted(predicted)], color=GREY, ls=":",
              label="max p on a code, predicted")  # fmt: skip
    axes.legend(fontsize=8, loc="lower left")


def _gaps(axes, by_kind: dict) -> None:
    _decorate(axes, r"loss $-\ \log(c/\min(n, c))$ (nats)")
    for kind, points in by_kind.items():
        _line(axes, kind, points, "loss_above_floor", label=f"optimised, {kind}")
        _line(axes, kind, points, "loss_above_floor_on_codes", fmt=":", marker="", label=f"rows put on codes, {kind}")
    axes.set_yscale("log")
    axes.legend(fontsize=8, loc="upper left")


def _line(axes, kind: str, points: list[dict], key: str, fmt="-", marker=None, fill=None, label=None) -> None:
    axes.plot([point["num_codes"] for point in points], [point[key] for point in points], fmt, color=COLOURS[kind],
              marker=MARKERS[kind] if marker is None else marker, ms=4, mfc=fill or COLOURS[kind],
              label=label)  # fmt: skip


def _decorate(axes, y_label: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xlabel("codes c")
    axes.set_ylabel(y_label)
    axes.spines[["top", "right"]].set_visible(False)


def _shade_fewer_rows(axes, points: list[dict]) -> None:
    enough = [point["num_codes"] for point in points if point["num_rows"] >= point["num_codes"]]
    fewer = [point["num_codes"] for point in points if point["num_rows"] < point["num_codes"]]
    if enough and fewer:
        edge = (max(enough) * min(fewer)) ** 0.5
        axes.axvspan(edge, max(fewer) * 2, color=GREY, alpha=0.12, lw=0)
        axes.set_xlim(min(enough) / 2, max(fewer) * 2)
        axes.text((edge * max(fewer) * 2) ** 0.5, 0.2, "n < c", transform=axes.get_xaxis_transform(), ha="center",
                  fontsize=9, color=GREY)  # fmt: skip


def _sorted_rows(settings: optimum.Settings) -> Tensor:
    h, _ = optimum.optimise(settings, "hadamard", CODES_OF_BLOCKS)
    dictionary, _ = optimum.problem(settings, "hadamard", CODES_OF_BLOCKS)
    own = cpk.assign(h, dictionary, backend="cpu")[1][:, 0]
    return h[own.argsort(stable=True)]


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.theorem.figures", description=__doc__)
    parser.add_argument("results", type=Path, help="JSON file that experiments.theorem wrote")
    parser.add_argument("out", type=Path, help="PNG file to write")
    options = parser.parse_args(arguments)
    return exit_status(lambda: _write(options.results, options.out))


def _write(results: Path, out: Path) -> None:
    if not out.parent.is_dir():
        raise InputError(f"OUT was {out}, expected a file in a folder that exists.")
    picture(tables.load(results)).savefig(out, dpi=95)
    print(out)


if __name__ == "__main__":
    sys.exit(main())
