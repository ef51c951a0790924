"""Prints the record of the GPU benchmark as aligned text that stays below a given number of characters."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

from bench.gpu_backends import PAIR, ratio, verdicts
from bench.gpu_bars import fastest
from bench.gpu_rows import AUTHORS, COLUMNS, COMPILED, FUSED, LIBRARY, TASKS
from bench.table import duration, megabytes

MOST_CHARACTERS = 11_800
_OTHERS = ("loss_graph", *(task for task in TASKS if task not in ("loss", "loss_graph", "logsumexp")))


def text(record: Mapping[str, Any], most: int = MOST_CHARACTERS) -> str:
    """Machine, tests, sanitizer, times, backends beside each other, what is wrong or failed, bars.

    Where that would be too long, rows of the loss are left out: the least important ones that have no bar.
    """
    bars = {bar["row"] for bar in record["bars"]}
    losses = [row for row in record["rows"] if row["task"] == "loss"]
    optional = [row["name"] for row in losses if row["name"] not in bars]
    for kept in range(len(optional), -1, -1):
        names = bars | set(optional[:kept])
        printed = _text(record, [row for row in losses if row["name"] in names], len(optional) - kept)
        if len(printed) <= most:
            break
    return printed[-most:]


def _text(record: Mapping[str, Any], losses: Sequence[Mapping[str, Any]], left_out: int) -> str:
    rows = record["rows"]
    beside = backend_lines([*losses, *(row for row in rows if row["task"] != "loss")])
    # The calls without formulas beside them need a table of their own only where there is but one backend.
    others = [] if beside else other_lines([row for row in rows if row["task"] in _OTHERS])
    blocks = [
        machine_lines(record),
        _block("loss and gradient: the fastest backend; the formulas' times as multiples of its, or the memory they "
               "would need", loss_lines(losses))
        + f"\n({left_out} more rows in the JSON)" * bool(left_out),
        _block("projector_logsumexp, forward and backward; the others hold a dense bf16 weight",
               fused_lines([row for row in rows if row["task"] == "logsumexp"])),
        _block("other calls", others),
        _block("backends beside each other; cuda/triton: logits/s (l/s) of the one over those of the other", beside),
        "\n".join(verdicts(record)),
        "\n".join(problems(record)),
        _block("bars (set for an H200)", bar_lines(record)),
    ]
    return "\n\n".join(block for block in blocks if block)


def machine_lines(record: Mapping[str, Any]) -> str:
    """Device, software, commit, the device's own rates, what tests and sanitizer gave."""
    machine, settings, tests = record["machine"], record["settings"], record["tests"]
    get = machine.get
    cuda = f"HIP {get('hip')}" if get("hip") else f"CUDA {get('cuda')}"
    lines = [f"{get('gpu') or get('cpu')} ({get('architecture')}), driver {get('driver')}, {cuda}, "
             f"torch {get('torch')}, triton {get('triton')}; commit {get('commit')}, {get('date')}"]
    if "matmul" in machine:
        products = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in machine["matmul"].items())
        lines.append(f"copy {machine['copy_bytes_per_second'] / 1e12:.3g} TB/s; matrix products in 10^12/s: {products}")
    refused = "; ".join(f"{name}: {reason}" for name, reason in settings.get("backends_refused", {}).items())
    backends = ", ".join(settings.get("backends") or []) or "none"
    lines.append(f"backends: {backends}" + (f" (not {refused})" if refused else ""))
    if tests is not None:
        lines.append(f"tests: {tests['summary']}")
        lines += _failing(tests)
    sanitizer = record.get("sanitizer")
    if sanitizer is not None:
        lines.append(f"sanitizer: {sanitizer['summary']}")
        lines += [f"    {line[:150]}" for tool in sanitizer["tools"] for line in tool.get("lines", ())[:3]]
    if settings.get("dry_run"):
        lines.append("DRY RUN on the CPU with tiny shapes: the numbers mean nothing")
    return "\n".join(lines)


def _failing(tests: Mapping[str, Any], most: int = 6) -> list[str]:
    """The first failing tests, and those that had begun when time was up: one of them hangs, or would have ended."""
    files = tests.get("files", ())
    failed = [f"    failed {entry['test']}: {entry['why']}" for file in files for entry in file.get("failing", ())]
    unfinished = [f"    unfinished {test}" for file in files for test in file.get("unfinished", ())]
    kept = [line[:160] for line in failed[:most] + unfinished[:3]]
    left_out = len(failed) + len(unfinished) - len(kept)
    return kept + ([f"    ({left_out} more in the JSON)"] if left_out else [])


def loss_lines(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One line per size: the fastest backend's time, rate, share of the bound and peak, then the other columns."""
    others = [*AUTHORS, *COMPILED]
    lines = [["W", "n", "f", "c", "backend", "time (min..max)", "logits/s", "bound", "peak", "vs f64",
              *(COLUMNS[name].title for name in others)]]
    for row in rows:
        cells, best = row["cells"], fastest(row)
        lines.append([*_size(row), *_best(row, best), _agreement(row, best),
                      *(_times(cells.get(name), cells.get(best)) for name in others)])
    return lines


def fused_lines(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The library's log-sum-exp beside fused vocabulary losses."""
    lines = [["W", "n", "f", "c", "backend", "time (min..max)", "logits/s", "bound", "peak",
              *(COLUMNS[name].title for name in FUSED)]]
    for row in rows:
        cells, best = row["cells"], fastest(row)
        lines.append([*_size(row), *_best(row, best), *(_times(cells.get(name), cells.get(best)) for name in FUSED)])
    return lines


def other_lines(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Forward functions and graph replays."""
    lines = [["call", "W", "n", "f", "c", "backend", "time (min..max)", "logits/s", "bound", "peak"]]
    return lines + [[row["task"], *_size(row), *_best(row, fastest(row))] for row in rows]


def backend_lines(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Time, logits/s and peak of cuda and triton, and the ratio of the two; nothing unless both were to be measured."""
    names = [LIBRARY + name for name in PAIR]
    if not all(any(name in row["columns"] for row in rows) for name in names):
        return []
    lines = [["call", "W", "n", "f", "c", *PAIR, *(f"{name} l/s" for name in PAIR), *(f"{name} peak" for name in PAIR),
              "/".join(PAIR)]]
    for row in rows:
        cells = [row["cells"].get(name) for name in names]
        if not any(cell and "median" in cell for cell in cells):
            continue
        found = ratio(row)
        lines.append([row["task"], *_size(row), *map(_time, cells), *map(_rate, cells), *map(_peak, cells),
                      "-" if found is None else f"{found:.2f}"])
    return lines


def _time(cell: Mapping[str, Any] | None) -> str:
    return duration(cell["median"]) if cell and "median" in cell else _absent(cell) if cell else "-"


def _rate(cell: Mapping[str, Any] | None) -> str:
    return f"{cell['logits_per_second']:.2e}" if cell and "median" in cell else "-"


def _peak(cell: Mapping[str, Any] | None) -> str:
    peak = (cell or {}).get("peak_bytes")
    return "-" if peak is None else megabytes(peak)


def bar_lines(record: Mapping[str, Any]) -> list[list[str]]:
    """Backend, bar, measured, met; "goal" where the goal beyond the bar is met too."""
    lines = [["backend", "row", "bar", "measured", "met", ""]]
    show = {"x": lambda v: f"{v:.1f}x", "%": lambda v: f"{v:.3g} %", "logits/s": lambda v: f"{v:.3g}", "s": duration,
            "bytes": megabytes}
    for bar in record["bars"]:
        measured = "-" if bar["measured"] is None else show[bar["unit"]](bar["measured"])
        met = {True: "yes", False: "NO", None: "-"}[bar["met"]] + (", goal" if bar["goal_met"] else "")
        lines.append([bar["backend"] or "any", bar["row"], bar["text"], measured, met,
                      "" if bar["note"] == LIBRARY + bar["backend"] else bar["note"][:60]])
    return lines


def problems(record: Mapping[str, Any], most: int = 12) -> list[str]:
    """What is wrong, then the distinct errors with the first row that had each."""
    found = [f"WRONG {row['name']}: {sentence}"[:200] for row in record["rows"] for sentence in row["wrong"]]
    errors: dict[str, list[str]] = {}
    for row in record["rows"]:
        for column, cell in row["cells"].items():
            if "error" in cell:
                errors.setdefault(f"{column}: {cell['error']}"[:160], []).append(row["name"])
    for error, names in errors.items():
        found.append(f"failed {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "") + f": {error}")
    return found[:most] + ([f"({len(found) - most} more in the JSON)"] if len(found) > most else [])


def _block(heading: str, lines: list[list[str]]) -> str:
    if len(lines) < 2:
        return ""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    body = [" ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    return "\n".join([heading, body[0], "-" * len(body[0]), *body[1:]])


def _size(row: Mapping[str, Any]) -> list[str]:
    codes = row["num_codes"]
    power = codes.bit_length() - 1
    return [row["dictionary"][0].upper(), str(row["n"]), str(row["num_features"]),
            f"2^{power}" if codes == 1 << power else str(codes)]


def _best(row: Mapping[str, Any], best: str | None) -> list[str]:
    if best is None:
        cells = [cell for name, cell in row["cells"].items() if name.startswith(LIBRARY)]
        return ["-", _absent(cells[0]) if cells else "-", "-", "-", "-"]
    cell = row["cells"][best]
    share = cell.get("bound_share")
    return [best[len(LIBRARY) :] + ("!" if row["wrong"] else ""), _spread(cell), _rate(cell),
            f"{share:.0%}" if share else "-", _peak(cell)]


def _spread(cell: Mapping[str, Any]) -> str:
    """7.12 ms (7.05..7.31): the range in the median's unit."""
    median = cell["median"]
    size = 1.0 if median >= 1 else 1e-3 if median >= 1e-3 else 1e-6
    return f"{duration(median)} ({cell['min'] / size:.3g}..{cell['max'] / size:.3g})"


def _agreement(row: Mapping[str, Any], best: str | None) -> str:
    found = row["agreement"].get(best, {})
    return f"{max(found['loss'], found['gradient']):.0e}" if "loss" in found else "-"


def _times(cell: Mapping[str, Any] | None, best: Mapping[str, Any] | None) -> str:
    """How many times as long as the fastest backend; round by round where both were timed in turns."""
    if cell is None or "median" not in cell:
        return "-" if cell is None else _absent(cell)
    if best is None:
        return duration(cell["median"])
    ratios = [entry["median"] for entry in cell.get("ratios", {}).values()]
    ratio = max(ratios, default=cell["median"] / best["median"])
    return f"{ratio:.1f}x" if ratio < 100 else f"{ratio:.0f}x"


def _absent(cell: Mapping[str, Any]) -> str:
    if "error" in cell:
        return "failed"
    reason = cell.get("skipped", "-")
    if reason.startswith("does not fit"):
        return reason.split(": ")[1].split(".")[0] + " GB"
    return {"time": "time", "not": "absent"}.get(reason.split(" ")[0].rstrip(":"), reason[:12])
