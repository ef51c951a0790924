"""Runs the GPU tests of the backends, a process per file, and counts their outcomes even where one hangs or crashes.

A process each: a kernel that reads where it must not breaks the device for every later test of its process, and the
other backend's results must not suffer for it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Iterable, Iterator, Mapping

from bench.gpu_process import ROOT, run

# Without a GPU they skip themselves or run on the CPU.
TEST_FILES = {
    "cuda": (
        "tests/kernels/cuda/test_cuda.py", "tests/kernels/cuda/test_cuda_gpu.py", "tests/kernels/cuda/test_cuda_shard.py", "tests/distributed/test_distributed_gpu.py",
    ),
    "triton": ("tests/kernels/triton/test_triton_gpu.py", "tests/kernels/triton/test_triton.py", "tests/kernels/triton/test_triton_shard.py"),
}
# What one file may take of the time left, unless it is the last: a hang must not cost all others.
MOST_OF_THE_REST = 0.6


def test_files(backends: Iterable[str] | None, refused: Mapping[str, str]) -> dict[str, str | None]:
    """File -> None to run it, or why its backend's tests are left out.

    Args:
        backends: names to choose from `TEST_FILES`; None: all.
        refused: backend -> why it cannot run here.
    """
    chosen = [name for name in TEST_FILES if backends is None or name in backends]
    return {file: refused.get(name) for name in chosen for file in TEST_FILES[name] if (ROOT / file).exists()}


def run_files(files: Mapping[str, str | None], seconds: float) -> Iterator[dict[str, Any]]:
    """Runs pytest on one file after the other; yields each one's outcome as soon as it is there.

    Yields:
        `file`; `left_out`, the reason, or: `passed`, `failed`, `skipped` (errors count as failed), `seconds`,
        `timed_out`, `ok`, `failing` ([{"test", "why"}]), `unfinished` (tests that had begun when the run was ended) and
        `tail` (the last lines of the output).
    """
    until = time.monotonic() + seconds
    waiting = [file for file, reason in files.items() if reason is None]
    for file, reason in files.items():
        left = until - time.monotonic()
        if reason is None and left <= 0:
            reason = "time"
        if reason is not None:
            yield {"file": file, "left_out": reason}
            continue
        waiting.remove(file)
        yield _run_file(file, left * (MOST_OF_THE_REST if waiting else 1.0))


def _run_file(file: str, seconds: float) -> dict[str, Any]:
    options = ["-v", "-ra", "--tb=short", "--color=no", "-p", "no:cacheprovider", "-p", "bench.gpu_test_log"]
    if importlib.util.find_spec("xdist"):
        options += ["-n", str(min(12, os.cpu_count() or 1))]  # nearly all of Triton's time is its compiler's
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "outcomes"
        ended = run([sys.executable, "-m", "pytest", *options, "--outcomes", str(log), file], seconds)
        lines = log.read_text().splitlines() if log.exists() else []
    notes = [json.loads(line) for line in lines if line.endswith("}")]  # the last one may be cut off
    outcomes: dict[str, str] = {}
    why: dict[str, str] = {}
    for note in notes:
        if outcomes.get(note["test"]) != "failed":  # what fails after its call (in a fixture) has failed
            outcomes[note["test"]] = note["outcome"]
            why[note["test"]] = note.get("why", "")
    counts = {word: sum(outcome == word for outcome in outcomes.values()) for word in ("passed", "failed", "skipped")}
    # 5: nothing was collected, which is what modules that skip themselves leave.
    ok = not ended.timed_out and counts["failed"] == 0 and ended.status in (0, 5)
    return {"file": file, **counts, "seconds": round(ended.seconds, 1), "timed_out": ended.timed_out, "ok": ok,
            "failing": [{"test": test, "why": why[test]} for test in outcomes if outcomes[test] == "failed"],
            "unfinished": [test for test in outcomes if outcomes[test] == "started"],
            "status": ended.status, "tail": ended.lines[-40:]}  # fmt: skip


def summary(outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    """What the record holds: `files` (without their output), the counts of all together, `ok`, a sentence."""
    ran = [outcome for outcome in outcomes if "left_out" not in outcome]
    total = {key: sum(outcome[key] for outcome in ran) for key in ("passed", "failed", "skipped", "seconds")}
    sentence = "; ".join(map(_sentence, outcomes)) or "none of the files exists"
    files = [{key: value for key, value in outcome.items() if key != "tail"} for outcome in outcomes]
    return {"files": files, **total, "ok": all(outcome["ok"] for outcome in ran), "summary": sentence}


def _sentence(outcome: Mapping[str, Any]) -> str:
    name = Path(outcome["file"]).name
    if "left_out" in outcome:
        return f"{name}: left out ({outcome['left_out'][:80]})"
    text = f"{name}: {outcome['passed']} passed, {outcome['failed']} failed, {outcome['skipped']} skipped in "
    text += f"{outcome['seconds']:.0f} s"
    if outcome["timed_out"]:
        return text + " (ended: out of time)"
    odd = not outcome["ok"] and not outcome["failed"]
    return text + (f" (pytest ended with status {outcome['status']})" if odd else "")
