"""Prints the implementations beside each other, from what `pytest bench/ --benchmark --benchmark-json=FILE` wrote."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate, tabulate_formats

from bench.cases import LIBRARY, TITLES
from bench.results import ResultsError, latest, load, machine_line
from bench.targets import MEGABYTE, target_rows

Entry = Mapping[str, Any]
_UNITS = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6))


def tables(entries: Sequence[Entry], tablefmt: str) -> str:
    """All tables that have a row, each under its heading, in one of tabulate's formats."""
    loss, functions = [], []
    for entry in entries:
        info = entry["extra_info"]
        if info["function"] != "cplearn_loss":
            functions.append(entry)
        elif entry["group"] == info["case"]:
            loss.append(entry)
    found = {
        "Loss, forward + backward: median of the rounds, as a multiple of the library's (min..max)": _grid(loss, _time),
        "Loss: logits per second of the library": _grid(loss, _rate),
        "Loss: peak memory above the inputs, + dense codes held": _grid(loss, _memory),
        "Functions of one batch, forward + backward where there is one": _grid(functions, _time),
        "Targets": [{"case": entry["group"], **row} for entry in entries
                    for row in target_rows(entry["extra_info"].get("targets") or ())],
    }  # fmt: skip
    texts = [heading + "\n\n" + tabulate(rows, "keys", tablefmt, disable_numparse=True)
             for heading, rows in found.items() if rows]  # fmt: skip
    return "\n\n".join(texts)


def _grid(entries: Sequence[Entry], cell: Callable[[Entry], str | None]) -> list[dict[str, str]]:
    """One row per case, one column per implementation that has a cell anywhere."""
    rows: dict[str, dict[str, str]] = {}
    filled = [(entry["extra_info"], text) for entry in entries if (text := cell(entry)) is not None]
    present = {info["implementation"] for info, _ in filled}
    for info, text in filled:
        first = {"function": info["function"]} if info["function"] != "cplearn_loss" else {}
        size = {"dictionary": info["dictionary"], "n": info["n"], "f": info["num_features"], "c": info["num_codes"]}
        empty = {title: "-" for name, title in TITLES.items() if name in present}
        row = rows.setdefault(info["case"], first | {key: str(value) for key, value in size.items()} | empty)
        row[TITLES[info["implementation"]]] = text
    return list(rows.values())


def _time(entry: Entry) -> str:
    text, ratio = duration(entry["stats"]["median"]), entry["extra_info"].get("ratio")
    return text if ratio is None else f"{text}, {ratio['median']:.1f}x ({ratio['min']:.1f}..{ratio['max']:.1f})"


def _rate(entry: Entry) -> str | None:
    info = entry["extra_info"]
    return f"{info['logits'] / entry['stats']['median']:.2e}" if info["implementation"] == LIBRARY else None


def _memory(entry: Entry) -> str | None:
    if not (memory := entry["extra_info"].get("memory")):
        return None
    held = f" + {megabytes(memory['codes_bytes'])}" if memory["codes_bytes"] else ""
    return megabytes(memory["growth_bytes"]) + held


def duration(seconds: float) -> str:
    """Three digits and a unit: 7.12 ms, 1.05 s."""
    value, unit = next((seconds / size, unit) for unit, size in _UNITS if seconds >= size or unit == "us")
    return f"{value:.3g} {unit}" if value < 100 else f"{value:.0f} {unit}"


def megabytes(count: float) -> str:
    """Bytes as megabytes, with one decimal below 10."""
    value = count / MEGABYTE
    return f"{value:.1f} MB" if value < 10 else f"{value:,.0f} MB"


def main(arguments: list[str] | None = None) -> int:
    """Prints the tables of one results file."""
    parser = argparse.ArgumentParser(prog="python -m bench.table", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("json", nargs="?", type=Path, help="what --benchmark-json wrote (default: the latest in bench/results)")
    add("--format", choices=tabulate_formats, default="github", metavar="NAME", help="tabulate's (default: github)")
    given = parser.parse_args(arguments)
    try:
        record = load(given.json or latest())
    except ResultsError as error:
        print(f"bench.table: {error}", file=sys.stderr)
        return 1
    print(tables(record["benchmarks"], given.format))
    print(f"\nMedian of alternating rounds. {machine_line(record['machine'])}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
