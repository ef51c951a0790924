"""Runs `bench.gpu.sanitized_calls` under NVIDIA's compute-sanitizer, and reads what it reports.

The tool watches every access of every thread: memcheck finds addresses out of bounds, racecheck threads that use shared
memory without a barrier between them, initcheck memory that is read before it is written, synccheck wrong barriers.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.gpu.process import Ended, run

PROGRAM = "compute-sanitizer"
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")  # in order of importance
_OPTIONS = {
    # Failed API calls raise in the library and in PyTorch, which also makes some on purpose. Padding: two arrays that
    # lie side by side would hide an index beyond the first.
    "memcheck": ("--report-api-errors", "no", "--padding", "512")
}
# Only kernels of namespace cplearn: PyTorch's own cost time and are not what is asked about.
_COMMON = ("--kernel-name", "kns=cplearn", "--error-exitcode", "86", "--print-limit", "20",
           "--show-backtrace", "device", "--launch-timeout", "120")  # fmt: skip
# PyTorch hands out pieces of large allocations, in which the tool would see nothing out of bounds.
_ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
_FINDING = re.compile(r"Invalid |Uninitialized |Error: Race reported |Barrier error ")
_SUMMARIES = (
    re.compile(r"RACECHECK SUMMARY: \d+ hazards? displayed \((\d+) errors?, (\d+) warnings?\)"),
    re.compile(r"(?:\w+ )?(?:ERROR|INITCHECK|SYNCCHECK) SUMMARY: (\d+) errors?()$"),
)


def run_tool(
    tool: str, seconds: float, log: Path, calls: Sequence[str] = (), prefix: Sequence[str] = (PROGRAM,)
) -> dict[str, Any]:
    """Runs one tool over `bench.gpu.sanitized_calls` with options `calls`; with an empty prefix the calls alone.

    Returns what `report` does, `seconds` and `timed_out`.
    """
    watched = (*prefix, "--tool", tool, *_COMMON, *_OPTIONS.get(tool, ())) if prefix else ()
    ended = run([*watched, sys.executable, "-m", "bench.gpu.sanitized_calls", *calls], seconds, log, _ENVIRONMENT)
    return {**report(ended), "seconds": ended.seconds, "timed_out": ended.timed_out}


def report(ended: Ended) -> dict[str, Any]:
    """Reads the output of one run.

    `errors` and `warnings`: None where the tool came to no count; `calls`: how many were begun; `complete`: all were
    made; `lines`: the first ones of what was found, or the words with which tool or program failed; `ok`: nothing was
    found (by a tool that would not run, either), and the program did not fail midway.
    """
    lines = ended.text.splitlines()
    tool = [line.lstrip("= ").rstrip() for line in lines if line.startswith("=====")]
    tool = [line for line in tool if line and line != PROGRAM.upper()]
    own = [line.strip() for line in lines if not line.startswith("=====") and line.strip()]
    found = [line for line in tool if "SUMMARY" not in line]
    counts = next((match for line in tool for pattern in _SUMMARIES if (match := pattern.match(line))), None)
    errors, warnings = (int(counts[1]), int(counts[2] or 0)) if counts else (None, None)
    if counts is None and any(map(_FINDING.match, found)):
        errors = sum(bool(_FINDING.match(line)) for line in found)  # ended before it could count them itself
    begun = [line for line in own if re.match(r"\w+ f=\d+ n=\d+ c=\d+: ", line)]
    complete = any(re.fullmatch(r"all \d+ calls made", line) for line in own)
    words = [f"out of time during {begun[-1] if begun else 'the start'}"] if ended.timed_out else own[-1:]
    kept = found[:20] if errors or warnings else []
    return {"errors": errors, "warnings": warnings, "calls": len(begun), "complete": complete,
            "lines": kept + ([] if complete else found[:3] * (not kept) + words),
            "ok": not errors and (complete or ended.timed_out or not begun)}  # fmt: skip
