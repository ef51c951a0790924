"""Prints a benchmark record as tables: plain text for the terminal, markdown for the README and the docs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Mapping, Sequence

from bench.results import ResultsError, load
from bench.cases import COLUMN_TITLES, LIBRARY, MEGABYTE, ONE_THREAD

Record = Mapping[str, Any]
_SIZE = ("dictionary", "n", "f", "c")
_HEADINGS = {"forward_backward": "forward + backward", "forward": "forward only"}


def machine_line(record: Record) -> str:
    """The machine, threads, versions, commit and date of a record, in one line."""
    machine, settings = record["machine"], record["settings"]
    parts = [
        f"{machine['cpu']} ({machine['cpu_capability']}), {machine['threads']} threads",
        f"torch {machine['torch']}",
        f"cplearn-kernels {machine['cplearn_kernels']} at {machine['commit'] or 'no commit'}, "
        f"backend {settings['backend']}",
        f"{settings['rounds']} alternating rounds",
        machine["date"],
    ]
    return "; ".join(parts)


def duration(seconds: float) -> str:
    """Three digits and a unit: 7.12 ms, 1.05 s."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{_digits(seconds / size)} {unit}"
    return f"{_digits(seconds / 1e-6)} us"


def megabytes(count: int) -> str:
    """Bytes as megabytes (10**6), with one decimal below 10."""
    value = count / MEGABYTE
    return f"{value:.1f} MB" if value < 10 else f"{value:,.0f} MB"


def time_rows(record: Record, what: str) -> list[list[str]]:
    """A heading and one line per measured row: median time (min..max) per column and the library's rate."""
    columns = _columns(record)
    lines = [[*_SIZE, *(COLUMN_TITLES[name] for name in columns), "logits/s"]]
    for row in record["rows"]:
        parts = [row["columns"].get(name, {}) for name in columns]
        if not any(what in part for part in parts):
            continue
        library = row["columns"].get(LIBRARY, {}).get(what)
        rate = f"{2 * row['n'] * row['num_codes'] / library['median']:.2e}" if library else "-"
        lines.append([*_size(row), *(_time_cell(part, what) for part in parts), rate])
    return lines


def ratio_rows(record: Record, what: str) -> list[list[str]]:
    """How many times as long as the library each column took: median of the rounds' ratios (min..max)."""
    columns = [name for name in _columns(record) if name != LIBRARY]
    lines = [[*_SIZE, *(f"{COLUMN_TITLES[name]} / library" for name in columns)]]
    for row in record["rows"]:
        cells = [row["ratios"].get(name, {}).get(what) for name in columns]
        if any(cells):
            texts = (f"{_times(cell['median'])} ({_range(cell, 1)})" if cell else "-" for cell in cells)
            lines.append([*_size(row), *texts])
    return lines


def memory_rows(record: Record) -> list[list[str]]:
    """Peak memory of a call above its inputs; for the formulas "+" the dense codes they hold besides."""
    columns = _columns(record)
    lines = [[*_SIZE, *(COLUMN_TITLES[name] for name in columns)]]
    for row in record["rows"]:
        parts = [row["columns"].get(name, {}).get("memory") for name in columns]
        if any(parts):
            lines.append([*_size(row), *(_memory_cell(part) for part in parts)])
    return lines


def bar_rows(record: Record) -> list[list[str]]:
    """One line per bar: the row, what is asked, what was measured, whether it is met."""
    lines = [["row", "bar", "measured", "met"]]
    for bar in record["bars"]:
        show = {"x": lambda v: f"{v:.2f}x" if v < 10 else f"{v:.1f}x", "MB": lambda v: f"{v:.1f} MB",
                "%": lambda v: f"{v:+.1f} %", "logits/s": lambda v: f"{v:.2e}"}[bar["unit"]]
        spread = "" if bar["spread"] is None else f" ({show(bar['spread'][0])}..{show(bar['spread'][1])})"
        lines.append([bar["row"], bar["text"], show(bar["measured"]) + spread, "yes" if bar["met"] else "NO"])
    return lines


def sections(record: Record) -> list[tuple[str, list[list[str]]]]:
    """The tables that have at least one line, each with its heading."""
    found = []
    for what, heading in _HEADINGS.items():
        found.append((f"time of {heading}: median (min..max)", time_rows(record, what)))
        found.append((f"time as a multiple of the library's, {heading}: median (min..max)", ratio_rows(record, what)))
    found.append(("peak memory of forward + backward above the inputs (+ the dense codes held)", memory_rows(record)))
    found.append(("bars", bar_rows(record)))
    return [(heading, lines) for heading, lines in found if len(lines) > 1]


def errors(record: Record) -> list[str]:
    """One sentence for every column that could not run."""
    return [f"{row['name']}: {COLUMN_TITLES[column]} did not run: {part['error']}"
            for row in record["rows"] for column, part in row["columns"].items() if "error" in part]


def text(record: Record) -> str:
    """All tables in aligned plain text."""
    blocks = [machine_line(record)]
    for heading, lines in sections(record):
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        body = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
        body.insert(1, "  ".join("-" * width for width in widths))
        blocks.append("\n".join([heading, *body]))
    return "\n\n".join(blocks + ["\n".join(errors(record))] * bool(errors(record)))


def readme(record: Record) -> str:
    """The README's markdown table: the rows compared with formulas, whose columns show their multiple of its time."""
    columns = [name for name in _columns(record) if name != ONE_THREAD]
    others = [name for name in columns if name != LIBRARY]
    lines = [[*_SIZE, *(COLUMN_TITLES[name] for name in columns)]]
    for row in record["rows"]:
        ratios = {name: row["ratios"].get(name, {}).get("forward_backward") for name in others}
        if not any(ratios.values()):
            continue
        cells = [f"**{duration(row['columns'][LIBRARY]['forward_backward']['median'])}**"]
        for name, ratio in ratios.items():
            time = row["columns"].get(name, {}).get("forward_backward")
            cells.append(f"{duration(time['median'])} ({_times(ratio['median'])})" if ratio else "-")
        lines.append([*_size(row), *cells])
    caption = f"Forward + backward, median of alternating rounds. {machine_line(record)}."
    return _markdown(lines) + "\n\n" + caption


def markdown(record: Record) -> str:
    """All tables in markdown."""
    blocks = [f"### {heading[0].upper()}{heading[1:]}\n\n{_markdown(lines)}" for heading, lines in sections(record)]
    return "\n\n".join([machine_line(record), *blocks, *errors(record)])


def _columns(record: Record) -> list[str]:
    present = {name for row in record["rows"] for name in row["columns"]}
    return [name for name in COLUMN_TITLES if name in present]


def _size(row: Mapping[str, Any]) -> list[str]:
    return [row["dictionary"], str(row["n"]), str(row["num_features"]), str(row["num_codes"])]


def _digits(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}g}" if value < 10 ** (digits - 1) else f"{value:.0f}"


def _times(value: float) -> str:
    return f"{value:.1f}x"


def _range(values: Mapping[str, float], decimals: int) -> str:
    return f"{values['min']:.{decimals}f}..{values['max']:.{decimals}f}"


def _time_cell(part: Mapping[str, Any], what: str) -> str:
    if what not in part:
        return "failed" if "error" in part else "-"
    time = part[what]
    return f"{duration(time['median'])} ({duration(time['min'])}..{duration(time['max'])})"


def _memory_cell(memory: Mapping[str, int] | None) -> str:
    if memory is None:
        return "-"
    held = f" + {megabytes(memory['codes_bytes'])}" if memory["codes_bytes"] else ""
    return megabytes(memory["growth_bytes"]) + held


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    table = ["| " + " | ".join(line) + " |" for line in lines]
    table.insert(1, "|" + "---|" * len(lines[0]))
    return "\n".join(table)


def main(arguments: list[str] | None = None) -> int:
    """Prints the tables of one results file."""
    parser = argparse.ArgumentParser(prog="python -m bench.table", description=__doc__.splitlines()[0])
    parser.add_argument("json", nargs="?", type=Path, help="results file (default: the latest in bench/results)")
    parser.add_argument("--format", choices=["readme", "markdown", "text"], default="readme",
                        help="readme: the one comparison table (default); markdown, text: all tables")
    given = parser.parse_args(arguments)
    try:
        record = load(given.json)
    except ResultsError as error:
        print(f"bench.table: {error}", file=sys.stderr)
        return 1
    print({"readme": readme, "markdown": markdown, "text": text}[given.format](record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
