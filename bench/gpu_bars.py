"""Judges the rows of a GPU record by its bars, and says what share of the bound a rate is."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any, Iterable, Mapping

from bench.gpu_rows import LIBRARY, GpuBar
from bench.table import duration

# Modules whose `bound` counts the work of a backend's kernels.
BOUNDS = {"triton": "bench.gpu_bounds", "cuda": "bench.cuda_bounds"}


def bound_for(architecture: str, row: Mapping[str, Any], backend: str = "triton") -> dict[str, Any] | None:
    """What a backend's `bound` says about the loss of a row on an architecture, None where it says nothing."""
    if row["task"] not in ("loss", "loss_graph"):
        return None
    try:
        bound = importlib.import_module(BOUNDS[backend]).bound
        return bound(architecture, row["dictionary"], row["n"], row["num_features"], row["num_codes"])
    except Exception:  # a bound is a remark on a measurement; no measurement is to be lost over it
        return None


def fastest(row: Mapping[str, Any]) -> str | None:
    """The library column with the smallest median, None where none was measured."""
    cells = {name: cell for name, cell in row["cells"].items() if name.startswith(LIBRARY)}
    measured = {name: cell["median"] for name, cell in cells.items() if "median" in cell}
    return min(measured, key=measured.__getitem__, default=None)


def judge(bars: Iterable[GpuBar], record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One entry per bar: `backend`, `row`, `text`, `required`, `measured`, `unit`, `note`, `met` and `goal_met`.

    `met` and `measured` are None where what the bar needs was not measured; `note` then says why. `goal_met` is None
    where there is no goal, too. A backend whose result in the row was found wrong meets no bar.
    """
    rows = {row["name"]: row for row in record["rows"]}
    return [_judged(bar, rows.get(bar.row), record["machine"]) for bar in bars]


def _judged(bar: GpuBar, row: Mapping[str, Any] | None, machine: Mapping[str, Any]) -> dict[str, Any]:
    text, unit = {
        "rate": (f"at least {bar.value:.2e} logits/s", "logits/s"),
        "speedup": (f"at least {bar.value:g}x as fast as {bar.against}", "x"),
        "tensor": (f"at least {bar.value:.0%} of the bf16 matrix rate", "%"),
        "memory": (f"peak below {bar.value:.0%} of {bar.against} with its weight", "%"),
        "peak": (f"peak below {bar.value / 1e9:g} GB", "bytes"),
        "time": (f"below {duration(bar.value)}", "s"),
        "runs": ("runs", "s"),
    }[bar.kind]
    text += f" (goal {bar.goal:.2g})" if bar.goal else ""
    column = _column(bar, row)
    goal_met = None
    if column is None:
        measured, met, note = None, None, _reason(bar, row)
    else:
        measured, met, note = _MEASURES[bar.kind](bar, row, column, machine)
        if found_wrong(row, column):
            met, note = False, "the row is wrong"
        if bar.goal and measured is not None:
            goal_met = bool(met) and _MEASURES[bar.kind](replace(bar, value=bar.goal), row, column, machine)[1]
    failed = row and any("error" in cell for _, cell in _cells(bar, row))
    if bar.kind == "runs" and column is None and failed:
        met = False
    return {"backend": bar.backend, "row": bar.row, "text": text, "required": bar.value, "measured": measured,
            "unit": unit, "note": note, "met": met, "goal_met": goal_met}


def found_wrong(row: Mapping[str, Any], column: str) -> bool:
    """Whether one of the sentences under `wrong` is about this column."""
    return any(sentence.startswith(f"{column}:") for sentence in row["wrong"])


def _cells(bar: GpuBar, row: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The library's cells that the bar may be met by."""
    return [(name, cell) for name, cell in row["cells"].items()
            if (name == LIBRARY + bar.backend if bar.backend else name.startswith(LIBRARY))]  # fmt: skip


def _column(bar: GpuBar, row: Mapping[str, Any] | None) -> str | None:
    """The fastest measured column of the bar's backend or, where the bar is nobody's, of all."""
    return fastest({"cells": dict(_cells(bar, row))}) if row else None


def _reason(bar: GpuBar, row: Mapping[str, Any] | None) -> str:
    return next((_outcome(cell) for _, cell in (_cells(bar, row) if row else ())), "not measured")


def _outcome(cell: Mapping[str, Any]) -> str:
    if "skipped" in cell:
        return f"skipped: {cell['skipped']}"
    return cell.get("error", "not measured")


def _rate(bar, row, column, machine):
    rate = row["cells"][column]["logits_per_second"]
    return rate, rate >= bar.value, column


def _speedup(bar, row, column, machine):
    cell = row["cells"].get(bar.against, {})
    ratio = cell.get("ratios", {}).get(column)
    if ratio is None:
        return None, None, _outcome(cell)
    return ratio["median"], ratio["median"] >= bar.value, column


def _tensor(bar, row, column, machine):
    """Operations per logit come from the bound (Triton's for a backend that has none of its own); without one, the least
    there can be: four products of 2 f."""
    rate = machine.get("matmul", {}).get("bf16")
    if rate is None:
        return None, None, "no bf16 matrix rate"
    backend = "cuda" if column == LIBRARY + "cuda" else "triton"
    per_logit = (bound_for(machine.get("architecture", ""), row, backend) or {}).get("tensor_flops")
    note = "" if per_logit else ", counting four products of 2 f"
    share = row["cells"][column]["logits_per_second"] * (per_logit or 8 * row["num_features"]) / rate
    return 100 * share, share >= bar.value, column + note


def _memory(bar, row, column, machine):
    other, own = row["cells"].get(bar.against, {}), row["cells"][column]["peak_bytes"]
    peak, note = other.get("peak_bytes"), column
    if peak is None and "estimated_bytes" in other:
        peak, note = other["estimated_bytes"], f"{column}, against an estimate"
    if own is None or peak is None:
        return None, None, "no memory counter" if own is None else "no peak of the formula"
    share = own / (peak + other["weight_bytes"])
    return 100 * share, share < bar.value, note


def _peak(bar, row, column, machine):
    peak = row["cells"][column]["peak_bytes"]
    return (None, None, "no memory counter") if peak is None else (peak, peak < bar.value, column)


def _time(bar, row, column, machine):
    seconds = row["cells"][column]["median"]
    return seconds, seconds < bar.value, column


def _runs(bar, row, column, machine):
    return row["cells"][column]["median"], True, column


_MEASURES = {"rate": _rate, "speedup": _speedup, "tensor": _tensor, "memory": _memory, "peak": _peak, "time": _time,
             "runs": _runs}  # fmt: skip
