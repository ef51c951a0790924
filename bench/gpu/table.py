"""Prints the record of a GPU run as text that stays below a given number of characters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tabulate import tabulate

from bench.cases import FORMULAS, Case
from bench.gpu.rows import BACKENDS, ROWS, judge, ratio, step_of, tiny
from bench.table import megabytes
from bench.targets import show

MOST_CHARACTERS = 9_900
MOST_PROBLEMS = 24
Entry = dict[str, Any]


def text(entries: Sequence[Entry], most: int = MOST_CHARACTERS) -> str:
    """Machine, tests, sanitizer, rows, what went wrong, tuner, targets.

    Where that would be too long, rows are left out: the least important ones that have no target.
    """
    groups = ("machine", "tests", "rows", "sanitizer", "tune")
    of = {group: [entry for entry in entries if entry["group"] == group] for group in groups}
    known = {step_of(row): row for row in (*ROWS, *map(tiny, ROWS))}
    rows = [(known[entry["step"]], entry) for entry in of["rows"] if entry["step"] in known]
    optional = [row for row, _ in rows if not row.targets]
    words = {True: "yes", False: "NO", None: "-"}
    targets = [
        [row.name, target.of, target, verdict and show(verdict), words[met]]
        for row, entry in rows
        for target, verdict, met in judge(row, entry)
    ]
    problems = [line[:160] for line in _problems(entries)]
    if len(problems) > MOST_PROBLEMS:
        problems[MOST_PROBLEMS:] = [f"({len(problems) - MOST_PROBLEMS} more in the record)"]
    for kept in range(len(optional), -1, -1):
        shown = [(row, entry) for row, entry in rows if row.targets or row in optional[:kept]]
        blocks = [
            *map(_machine, of["machine"]),
            _steps("tests", of["tests"], ("passed", "failed", "skipped", "seconds")),
            _steps("compute-sanitizer", of["sanitizer"], ("errors", "warnings", "calls", "seconds")),
            _rows(shown) + (f"\n({len(optional) - kept} more rows in the record)" if kept < len(optional) else ""),
            "\n".join(problems),
            *(f"tuner: {entry['last']}" for entry in of["tune"]),
            _block("targets (set for an H200)", ["row", "backend", "target", "measured", "met"], targets),
        ]
        printed = "\n\n".join(block for block in blocks if block)
        if len(printed) <= most:
            break
    return printed[-most:]


def _block(title: str, heads: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    return f"{title}\n{tabulate(lines, heads, disable_numparse=True)}" if lines else ""


def _machine(entry: Entry) -> str:
    told = ("gpu", "architecture", "driver", "CUDA", "HIP", "torch", "cpu", "commit", "date")
    lines = [", ".join(f"{key} {entry[key]}" for key in told if entry.get(key))]
    lines += [f"no backend {name}: {reason}"[:200] for name, reason in entry["backends"].items() if reason]
    return "\n".join(lines + ["DRY RUN on the CPU with tiny shapes: the numbers mean nothing"] * entry["dry_run"])


def _steps(title: str, entries: Sequence[Entry], keys: Sequence[str]) -> str:
    """A line per test file or tool of the sanitizer."""
    lines = []
    for entry in entries:
        note = f"left out: {entry['left_out'][:60]}" if "left_out" in entry else "out of time" * entry["timed_out"]
        lines.append([entry["step"].rpartition("/")[2], *(entry.get(key, "") for key in keys), note])
    return _block(title, ["step", *keys, ""], lines)


def _rows(rows: Sequence[tuple[Case, Entry]]) -> str:
    """A line per row: backends' times, cuda's speed as a multiple of triton's, rate and peak, formulas as multiples."""
    measured = {name for _, entry in rows for name in entry["cells"]}
    backends, formulas = ([name for name in names if name in measured] for names in (BACKENDS, FORMULAS))
    lines = []
    for row, entry in rows:
        cells = entry["cells"]
        times = {name: cells[name]["median"] for name in backends if "median" in cells.get(name, {})}
        best = cells[min(times, key=times.__getitem__)] if times else {}
        ahead, peak = ratio(cells.get("triton", {}), cells.get("cuda", {})), best.get("growth_bytes")
        lines.append([
            f"{row.function} {row.dictionary[0].upper()}", row.n, row.num_features, row.num_codes,
            *(_time(cells.get(name)) for name in backends), "" if ahead is None else f"{ahead:.2f}",
            f"{row.logits / best['median']:.2e}" if best else "", "" if peak is None else megabytes(peak),
            *(_time(cells.get(name), best) for name in formulas),
        ])  # fmt: skip
    title = "rows: seconds a call of each backend; logits/s and peak of the fastest; formulas as multiples of its time"
    return _block(title, ["call", "n", "f", "c", *backends, "cuda/triton", "logits/s", "peak", *formulas], lines)


def _time(cell: Entry | None, best: Entry | None = None) -> str:
    """Seconds, or a multiple of the best cell's."""
    if cell is None or "median" not in cell:
        return "" if cell is None else "failed" if "error" in cell else "?"
    shown = f"{ratio(cell, best):.1f}x" if best else f"{cell['median']:.3g}"
    return shown + (" WRONG" if "wrong" in cell else "")


def _problems(entries: Sequence[Entry]) -> Iterator[str]:
    """What is wrong or failed, a line each."""
    for entry in entries:
        step = entry["step"]
        yield from (f"failed {test}: {why}" for test, why in entry.get("failing", ()))
        yield from (f"unfinished {test}" for test in entry.get("unfinished", ())[:3])
        if entry["group"] == "tests" and not entry.get("ok", True) and not entry["failed"]:
            yield f"{step}: pytest ended with status {entry['status']}"
        yield from (f"{step}: {line}" for line in entry.get("lines", ())[:4])
        yield from (f"WRONG {step}: {sentence}" for sentence in entry.get("wrong", ()))
        if entry.get("busy"):
            yield f"ended {step}: during {entry['busy']}"
        for name, cell in entry.get("cells", {}).items():
            yield from (f"{key} {step}: {name}: {cell[key]}" for key in ("wrong", "error") if key in cell)
