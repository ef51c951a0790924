"""Runs the library's calls under NVIDIA's compute-sanitizer, and reads what it reports.

The tool watches every access of every thread: memcheck finds addresses out of bounds, racecheck threads that use shared
memory without a barrier between them, initcheck memory that is read before it is written.
"""

from __future__ import annotations

import re
import shutil
import sys
import time
from typing import Any, Iterator, Sequence

from bench.gpu_process import Ended, run

PROGRAM = "compute-sanitizer"
CALLS = ("-m", "bench.gpu_sanitized_calls")
# In order of importance, with the share of the time left that each may take.
TOOLS = {"memcheck": 0.5, "racecheck": 0.8, "initcheck": 1.0}
LEAST_SECONDS = 15.0  # PyTorch's import under the tool alone takes about as long
_FOUND_ERRORS = 86  # the exit status that tells errors found from a program that failed
_OPTIONS = {
    # Failed API calls raise in the library and in PyTorch, which also makes some on purpose. Padding: two arrays that
    # lie side by side would hide an index beyond the first.
    "memcheck": ("--report-api-errors", "no", "--padding", "512"),
}
# Only kernels of namespace cplearn: PyTorch's own cost time and are not what is asked about.
_COMMON = ("--kernel-name", "kns=cplearn", "--error-exitcode", str(_FOUND_ERRORS), "--print-limit", "20",
           "--show-backtrace", "device", "--launch-timeout", "120")  # fmt: skip
# PyTorch hands out pieces of large allocations, in which the tool would see nothing out of bounds.
_ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
MOST_LINES = 24
_FINDING = re.compile(r"Invalid |Uninitialized |Error: Race reported ")


def available() -> bool:
    """Whether the program is on the path."""
    return shutil.which(PROGRAM) is not None


def run_tools(seconds: float, options: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Runs one tool after the other; yields what each found.

    Args:
        seconds: for all of them.
        options: for `bench.gpu_sanitized_calls`.

    Yields:
        `tool`; `left_out`, the reason, or: what `report` returns, `seconds`, `timed_out`.
    """
    until = time.monotonic() + seconds
    program = shutil.which(PROGRAM)
    for tool, share in TOOLS.items():
        limit = share * (until - time.monotonic())
        if program is None:
            yield {"tool": tool, "left_out": f"{PROGRAM} was not found"}
        elif limit < LEAST_SECONDS:
            yield {"tool": tool, "left_out": "time"}
        else:
            command = [program, "--tool", tool, *_COMMON, *_OPTIONS.get(tool, ()), sys.executable, *CALLS, *options]
            try:
                ended = run(command, limit, _ENVIRONMENT)
            except OSError as error:
                yield {"tool": tool, "left_out": f"{PROGRAM} cannot be started: {error}"}
                continue
            yield {"tool": tool, **report(ended), "seconds": round(ended.seconds, 1), "timed_out": ended.timed_out}


def report(ended: Ended) -> dict[str, Any]:
    """Reads the output of one run.

    Returns:
        `errors` and `warnings`, None where the tool came to no count; `calls`, how many were begun; `last_call`, its
        name; `complete`, whether all were made; `refused`, the tool's or the program's words where one of them failed;
        `lines`, the first ones of what was found; `ok`: nothing was found, and the program did not fail midway.
    """
    tool = [line.lstrip("= ").rstrip() for line in ended.lines if line.startswith("=====")]
    own = [line.strip() for line in ended.lines if not line.startswith("=====") and line.strip()]
    found = [line for line in tool if line and line != PROGRAM.upper() and "SUMMARY" not in line]
    errors, warnings = _count(tool)
    if errors is None and any(map(_FINDING.match, found)):
        errors = sum(bool(_FINDING.match(line)) for line in found)  # ended before it could count them itself
    begun = [line for line in own if re.match(r"\w+ f=\d+ n=\d+ c=\d+: ", line)]
    complete = any(re.fullmatch(r"all \d+ calls made", line) for line in own)
    refused = None
    if ended.timed_out:
        refused = f"out of time during: {begun[-1]}" if begun else "out of time before the first call"
    elif errors is None:
        words = [line for line in tool if line and line != PROGRAM.upper()] + own[-1:]
        refused = (words[0] if words else f"no output, status {ended.status}")[:200]
    elif not complete:
        refused = f"the program ended with status {ended.status}: {own[-1] if own else 'no output'}"[:200]
    lines = found[:MOST_LINES] if errors or warnings or refused else []
    return {"errors": errors, "warnings": warnings, "calls": len(begun), "complete": complete, "refused": refused,
            "last_call": begun[-1] if begun else None, "lines": lines,
            "ok": not errors and (complete or ended.timed_out or not begun)}  # fmt: skip


def _count(lines: Sequence[str]) -> tuple[int | None, int | None]:
    """(errors, warnings) of the tool's last lines: `ERROR SUMMARY: 2 errors`, or racecheck's with both."""
    for line in lines:
        both = re.search(r"RACECHECK SUMMARY: \d+ hazards? displayed \((\d+) errors?, (\d+) warnings?\)", line)
        if both:
            return int(both[1]), int(both[2])
        one = re.fullmatch(r"(?:\w+ )?ERROR SUMMARY: (\d+) errors?|INITCHECK SUMMARY: (\d+) errors?", line)
        if one:
            return int(one[1] or one[2]), None
    return None, None


def summary(outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    """What the record holds: `tools`, `ok` (a tool that would not run has found nothing), `summary`, a sentence."""
    return {"tools": outcomes, "ok": all(outcome.get("ok", True) for outcome in outcomes),
            "summary": "; ".join(map(_sentence, outcomes))}  # fmt: skip


def _sentence(outcome: dict[str, Any]) -> str:
    if "left_out" in outcome:
        return f"{outcome['tool']}: left out ({outcome['left_out']})"
    if outcome["errors"] is None:
        return f"{outcome['tool']}: no result ({outcome['refused']})"
    text = f"{outcome['tool']}: {outcome['errors']} errors"
    text += f", {outcome['warnings']} warnings" if outcome["warnings"] else ""
    text += f" in {outcome['calls']} calls, {outcome['seconds']:.0f} s"
    return text + (f" ({outcome['refused']})" if outcome["refused"] else "")
