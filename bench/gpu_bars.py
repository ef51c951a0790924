"""Judges the rows of a GPU record by its bars, and says what share of the bound a rate is."""

from __future__ import annotations

from typing import Any, Iterable, Mapping

from bench.gpu_rows import LIBRARY, GpuBar


def bound_for(architecture: str, row: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `bench.gpu_bounds.bound` says about the loss of a row on an architecture, None where it says nothing."""
    if row["task"] not in ("loss", "loss_graph"):
        return None
    try:
        from bench.gpu_bounds import bound

        return bound(architecture, row["dictionary"], row["n"], row["num_features"], row["num_codes"])
    except Exception:  # a bound is a remark on a measurement; no measurement is to be lost over it
        return None


def fastest(row: Mapping[str, Any]) -> str | None:
    """The library column with the smallest median, None where none was measured."""
    cells = {name: cell for name, cell in row["cells"].items() if name.startswith(LIBRARY)}
    measured = {name: cell["median"] for name, cell in cells.items() if "median" in cell}
    return min(measured, key=measured.__getitem__, default=None)


def judge(bars: Iterable[GpuBar], record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One entry per bar: `row`, `text`, `required`, `measured`, `unit`, `note` and `met`.

    `met` and `measured` are None where what the bar needs was not measured; `note` then says why. The library is its
    fastest backend; a row that was found wrong meets no bar.
    """
    rows = {row["name"]: row for row in record["rows"]}
    return [_judged(bar, rows.get(bar.row), record["machine"]) for bar in bars]


def _judged(bar: GpuBar, row: Mapping[str, Any] | None, machine: Mapping[str, Any]) -> dict[str, Any]:
    text, unit = {
        "rate": (f"at least {bar.value:.2e} logits/s", "logits/s"),
        "speedup": (f"at least {bar.value:g}x as fast as {bar.against}", "x"),
        "tensor": (f"at least {bar.value:.0%} of the bf16 matrix rate", "%"),
        "memory": (f"peak below {bar.value:.0%} of {bar.against} with its weight", "%"),
        "runs": ("runs", "s"),
    }[bar.kind]
    column = fastest(row) if row else None
    if column is None:
        measured, met, note = None, None, _reason(row)
    else:
        measured, met, note = _MEASURES[bar.kind](bar, row, column, machine)
        if row["wrong"]:
            met, note = False, "the row is wrong"
    if bar.kind == "runs" and column is None and row and any("error" in cell for cell in row["cells"].values()):
        met = False
    return {"row": bar.row, "text": text, "required": bar.value, "measured": measured, "unit": unit, "note": note,
            "met": met}


def _reason(row: Mapping[str, Any] | None) -> str:
    cells = row["cells"].items() if row else ()
    return next((_outcome(cell) for name, cell in cells if name.startswith(LIBRARY)), "not measured")


def _outcome(cell: Mapping[str, Any]) -> str:
    if "skipped" in cell:
        return f"skipped: {cell['skipped']}"
    return cell.get("error", "not measured")


def _rate(bar, row, column, machine):
    rate = row["cells"][column]["logits_per_second"]
    return rate, rate >= bar.value, column


def _speedup(bar, row, column, machine):
    cell = row["cells"].get(bar.against, {})
    ratios = [ratio["median"] for ratio in cell.get("ratios", {}).values()]
    if not ratios:
        return None, None, _outcome(cell)
    return max(ratios), max(ratios) >= bar.value, column


def _tensor(bar, row, column, machine):
    """Operations per logit come from the bound; without one, the least there can be: four products of 2 f."""
    rate = machine.get("matmul", {}).get("bf16")
    if rate is None:
        return None, None, "no bf16 matrix rate"
    per_logit = (bound_for(machine.get("architecture", ""), row) or {}).get("tensor_flops")
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


def _runs(bar, row, column, machine):
    return row["cells"][column]["median"], True, column


_MEASURES = {"rate": _rate, "speedup": _speedup, "tensor": _tensor, "memory": _memory, "runs": _runs}
