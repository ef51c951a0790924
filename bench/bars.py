"""Judges measured rows by the bars of `bench.rows`."""

from __future__ import annotations

from typing import Any, Iterable, Mapping

from bench.rows import LIBRARY, MEGABYTE, MEMORY_BARS, ROWS, MemoryBar, Row


def judge(
    measured: Iterable[Mapping[str, Any]],
    rows: Iterable[Row] = ROWS,
    memory_bars: Iterable[MemoryBar] = MEMORY_BARS,
) -> list[dict[str, Any]]:
    """One entry per bar whose rows have been measured.

    Args:
        measured: the `rows` of a record (see `bench.results`).
        rows: where the speed bars are.
        memory_bars: the bars on memory.

    Returns:
        Dictionaries with `row`, `text` (the bar in words), `required`, `measured` (median ratio, or megabytes),
        `spread` (smallest and largest ratio of a round; None for memory) and `met`.
    """
    by_name = {entry["name"]: entry for entry in measured}
    verdicts = []
    for row in rows:
        for bar in row.bars:
            ratio = by_name.get(row.name, {}).get("ratios", {}).get(bar.against, {}).get("forward_backward")
            if ratio is not None:
                verdicts.append({
                    "row": row.name,
                    "text": f"at least {bar.at_least:g}x as fast as {bar.against}",
                    "required": bar.at_least,
                    "measured": ratio["median"],
                    "spread": [ratio["min"], ratio["max"]],
                    "met": ratio["median"] >= bar.at_least,
                })
    for bar in memory_bars:
        peaks = [_peak(by_name.get(name, {})) for name in (bar.row, bar.baseline)]
        if None not in peaks:
            grown = (peaks[0] - peaks[1]) / MEGABYTE
            verdicts.append({
                "row": bar.row,
                "text": f"peak memory less than {bar.below_megabytes:g} MB above that of {bar.baseline}",
                "required": bar.below_megabytes,
                "measured": grown,
                "spread": None,
                "met": grown < bar.below_megabytes,
            })
    return verdicts


def _peak(entry: Mapping[str, Any]) -> int | None:
    """Peak bytes of the library's process; both processes hold the same program, so their difference is the call's."""
    memory = entry.get("columns", {}).get(LIBRARY, {}).get("memory")
    return None if memory is None else memory["peak_bytes"]
