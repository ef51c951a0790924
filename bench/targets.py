"""Judges measured rows by the bars of `bench.cases`."""

from __future__ import annotations

from typing import Any, Iterable, Mapping

from bench.cases import LIBRARY, LINEAR_BARS, MEGABYTE, MEMORY_BARS, ROWS, LinearBar, MemoryBar, RateBar, Row


def judge(
    measured: Iterable[Mapping[str, Any]],
    rows: Iterable[Row] = ROWS,
    memory_bars: Iterable[MemoryBar] = MEMORY_BARS,
    linear_bars: Iterable[LinearBar] = LINEAR_BARS,
) -> list[dict[str, Any]]:
    """One entry per bar whose rows have been measured.

    Args:
        measured: the `rows` of a record (see `bench.results`).
        rows: where the speed bars are.
        memory_bars: the bars on memory.
        linear_bars: the bars on time against the number of codes.

    Returns:
        Dictionaries with `row`, `text` (the bar in words), `required`, `measured`, `unit` ("x", "logits/s", "MB" or
        "%"), `spread` (smallest and largest of the rounds; None for memory) and `met`.
    """
    by_name = {entry["name"]: entry for entry in measured}
    verdicts = [_speed(row, bar, by_name.get(row.name, {})) for row in rows for bar in row.bars]
    verdicts += [_memory(bar, by_name) for bar in memory_bars]
    verdicts += [_linear(bar, by_name) for bar in linear_bars]
    return [verdict for verdict in verdicts if verdict is not None]


def _speed(row: Row, bar: Any, entry: Mapping[str, Any]) -> dict[str, Any] | None:
    if isinstance(bar, RateBar):
        time = entry.get("columns", {}).get(LIBRARY, {}).get("forward_backward")
        if time is None:
            return None
        text, unit = f"at least {bar.at_least:.1e} logits per second", "logits/s"
        measured, spread = row.logits / time["median"], [row.logits / time["max"], row.logits / time["min"]]
    else:
        ratio = entry.get("ratios", {}).get(bar.against, {}).get("forward_backward")
        if ratio is None:
            return None
        text, unit = f"at least {bar.at_least:g}x as fast as {bar.against}", "x"
        measured, spread = ratio["median"], [ratio["min"], ratio["max"]]
    return _verdict(row.name, text, bar.at_least, measured, unit, spread, measured >= bar.at_least)


def _memory(bar: MemoryBar, by_name: Mapping[str, Any]) -> dict[str, Any] | None:
    memory = by_name.get(bar.row, {}).get("columns", {}).get(LIBRARY, {}).get("memory")
    baseline = by_name.get(bar.baseline, {}).get("columns", {}).get(LIBRARY, {}).get("memory")
    if memory is None or (bar.baseline is not None and baseline is None):
        return None
    # Both processes hold the same program, so the difference of their peaks is the call's.
    grown = memory["growth_bytes"] if bar.baseline is None else memory["peak_bytes"] - baseline["peak_bytes"]
    above = "the inputs" if bar.baseline is None else f"that of {bar.baseline}"
    text = f"peak memory less than {bar.below_megabytes:g} MB above {above}"
    grown /= MEGABYTE
    return _verdict(bar.row, text, bar.below_megabytes, grown, "MB", None, grown < bar.below_megabytes)


def _linear(bar: LinearBar, by_name: Mapping[str, Any]) -> dict[str, Any] | None:
    measured = by_name.get(bar.rows[-1], {}).get("linear", {})
    if not set(bar.rows) <= measured.keys():
        return None
    deviations = {name: measured[name]["median"] - 1 for name in bar.rows}
    worst = max(deviations, key=lambda name: abs(deviations[name]))
    text = f"time per code within {bar.within:.0%} of that of {bar.rows[-1]}, from {bar.rows[0]} on"
    spread = [100 * min(deviations.values()), 100 * max(deviations.values())]
    met = abs(deviations[worst]) <= bar.within
    return _verdict(worst, text, 100 * bar.within, 100 * deviations[worst], "%", spread, met)


def _verdict(row, text, required, measured, unit, spread, met) -> dict[str, Any]:
    return {"row": row, "text": text, "required": required, "measured": measured, "unit": unit, "spread": spread,
            "met": met}
