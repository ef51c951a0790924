"""Prints the record of a GPU run as text that stays below a given number of characters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bench.gpu.rows import BACKENDS, FORMULAS, ROWS, Row, judge, rate, ratio

MOST_CHARACTERS = 9_900
Entry = dict[str, Any]


def text(entries: Sequence[Entry], most: int = MOST_CHARACTERS) -> str:
    """Machine, tests, sanitizer, tuner, rows, what went wrong, targets.

    Where that would be too long, rows are left out: the least important ones that have no target.
    """
    of = {group: [entry for entry in entries if entry["group"] == group] for group in GROUPS}
    known = {row.name: row for row in (*ROWS, *(row.shrunk() for row in ROWS))}
    rows = [(known[entry["step"]], entry) for entry in of["rows"] if entry["step"] in known]
    optional = [row for row, _ in rows if not row.targets]
    targets = [(row.size, *verdict.values()) for row, entry in rows for verdict in judge(row, entry)]
    for kept in range(len(optional), -1, -1):
        shown = [(row, entry) for row, entry in rows if row.targets or row in optional[:kept]]
        blocks = [
            _machine(of["machine"]),
            _block("tests", ["file", "passed", "failed", "skipped", "seconds", ""], map(_tests_line, of["tests"])),
            _block("compute-sanitizer", ["tool", "errors", "warnings", "calls", "seconds", ""], map(_tool_line, of["sanitizer"])),
            *(f"tuner: {entry['last']}" for entry in of["tune"]),
            _rows_block(shown, len(optional) - kept),
            "\n".join(_problems(of["tests"] + of["sanitizer"] + of["rows"])),
            _block("targets (set for an H200)", ["row", "backend", "target", "measured", "met"],
                   [(*cells, {True: "yes", False: "NO", None: "-"}[met]) for *cells, met in targets]),
        ]  # fmt: skip
        printed = "\n\n".join(block for block in blocks if block)
        if len(printed) <= most:
            break
    return printed[-most:]


GROUPS = ("machine", "tests", "rows", "sanitizer", "tune")


def _block(title: str, heads: list[str], lines: Any) -> str:
    lines = list(lines)
    return f"{title}\n{tabulate(lines, heads, disable_numparse=True)}" if lines else ""


def _machine(entries: Sequence[Entry]) -> str:
    lines = []
    for entry in entries:
        get = entry.get
        lines.append(f"{get('gpu') or 'no GPU'} ({get('architecture')}), driver {get('driver')}, CUDA {get('cuda')}, HIP "
                     f"{get('hip')}, torch {get('torch')}; commit {get('commit')}, {get('date')}")  # fmt: skip
        lines += [f"no backend {name}: {reason}"[:200] for name, reason in get("backends", {}).items() if reason]
        if get("dry_run"):
            lines.append("DRY RUN on the CPU with tiny shapes: the numbers mean nothing")
    return "\n".join(lines)


def _tests_line(entry: Entry) -> list[Any]:
    if "left_out" in entry:
        return [Path(entry["step"]).name, "", "", "", "", f"left out: {entry['left_out'][:60]}"]
    odd = "" if entry["ok"] or entry["failed"] else f"pytest ended with status {entry['status']}"
    return [Path(entry["step"]).name, entry["passed"], entry["failed"], entry["skipped"], entry["seconds"],
            "out of time" if entry["timed_out"] else odd]  # fmt: skip


def _tool_line(entry: Entry) -> list[Any]:
    if "left_out" in entry:
        return [entry["step"], "", "", "", "", f"left out: {entry['left_out'][:60]}"]
    errors = "no result" if entry["errors"] is None else entry["errors"]
    return [entry["step"], errors, entry["warnings"], entry["calls"], entry["seconds"],
            "" if entry["complete"] else "not all calls made"]  # fmt: skip


def _rows_block(rows: Sequence[tuple[Row, Entry]], left_out: int) -> str:
    """A line per row: backends' times, cuda's speed as a multiple of triton's, rate and peak, formulas as multiples."""
    measured = {name for _, entry in rows for name in entry["cells"]}
    formulas = [name for name in FORMULAS if name in measured]
    backends = [name for name in BACKENDS if name in measured]
    heads = ["call", "n", "f", "c", *backends, "cuda/triton", "logits/s", "peak", *formulas]
    lines = []
    for row, entry in rows:
        cells = entry["cells"]
        times = {name: cells[name]["median"] for name in backends if "median" in cells.get(name, {})}
        best = cells[min(times, key=times.__getitem__)] if times else {}
        ahead = ratio(cells.get("triton", {}), cells.get("cuda", {}))
        peak = best.get("peak_bytes")
        lines.append([
            f"{row.task} {row.dictionary[0].upper()}", row.n, row.f, f"2^{row.log2_codes}",
            *(_time(cells.get(name)) for name in backends), "" if ahead is None else f"{ahead:.2f}",
            "" if not best else f"{rate(row, best):.2e}", "" if peak is None else f"{peak / 1e6:.1f} MB",
            *(_multiple(cells.get(name), best) for name in formulas),
        ])  # fmt: skip
    title = "rows: seconds a call of each backend; logits/s and peak of the fastest; formulas as multiples of its time"
    return _block(title, heads, lines) + (f"\n({left_out} more rows in the record)" if left_out else "")


def _time(cell: Entry | None) -> str:
    if cell is None:
        return ""
    flag = " WRONG" if "wrong" in cell else ""
    return f"{cell['median']:.3g}{flag}" if "median" in cell else "failed" if "error" in cell else "?"


def _multiple(cell: Entry | None, best: Entry) -> str:
    multiple = ratio(cell or {}, best)
    return _time(cell) if multiple is None else f"{multiple:.1f}x"


def _problems(entries: Sequence[Entry], most: int = 24) -> list[str]:
    """What is wrong or failed, a line each."""
    found = []
    for entry in entries:
        step = entry["step"]
        found += [f"failed {test}: {why}" for test, why in entry.get("failing", ())]
        found += [f"unfinished {test}" for test in entry.get("unfinished", ())[:3]]
        found += [f"{step}: {line}" for line in entry.get("lines", ())[:4]]
        found += [f"WRONG {step}: {sentence}" for sentence in entry.get("wrong", ())]
        if entry.get("busy"):
            found.append(f"ended {step}: during {entry['busy']}")
        for name, cell in entry.get("cells", {}).items():
            found += [
                f"{word} {step}: {name}: {cell[key]}"
                for key, word in (("wrong", "WRONG"), ("error", "failed"))
                if key in cell
            ]
    return [line[:160] for line in found[:most]] + [f"({len(found) - most} more in the record)"] * (len(found) > most)
