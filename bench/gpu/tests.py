"""Runs the backends' GPU tests, a process per file, and counts outcomes even where a test hangs or crashes.

A process each: a kernel that reads where it must not breaks the device for every later test of its process. The module
is a plugin of pytest, too (`-p bench.gpu.tests`): it notes every outcome at once, where pytest's own summary, or a
JUnit file, comes at the end, too late for a test that hangs.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.gpu.process import run

KERNELS = "tests/kernels"
FILES = {
    "cuda": (f"{KERNELS}/cuda/test_cuda.py", f"{KERNELS}/cuda/test_cuda_gpu.py", f"{KERNELS}/cuda/test_cuda_shard.py",
             "tests/distributed/test_distributed_gpu.py"),
    "triton": (f"{KERNELS}/triton/test_triton_gpu.py", f"{KERNELS}/triton/test_triton.py",
               f"{KERNELS}/triton/test_triton_shard.py"),
}  # fmt: skip
DRY_FILES = tuple(f"{KERNELS}/{name}/test_{name}_gpu.py" for name in FILES)  # on a CPU they skip themselves
_WORKER = "PYTEST_XDIST_WORKER"  # not what started this command, but what it starts
_OUTCOMES = "CPLEARN_GPU_OUTCOMES"  # the environment variable that tells the plugin its file


def run_file(file: str, seconds: float, log: Path) -> dict[str, Any]:
    """Runs pytest on a file for at most so long: `passed`, `failed` (errors too), `skipped`, `seconds`, `timed_out`,
    `ok`, `failing` ([[test, why]]) and `unfinished`, the tests that had begun when the run ended.
    """
    options = ["-q", "--tb=short", "--color=no", "-p", "no:cacheprovider", "-p", "bench.gpu.tests"]
    if importlib.util.find_spec("xdist"):
        options += ["-n", str(min(12, os.cpu_count() or 1))]  # nearly all of Triton's time is its compiler's
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "outcomes"
        ended = run([sys.executable, "-m", "pytest", *options, file], seconds, log, {_OUTCOMES: str(path), _WORKER: ""})
        lines = path.read_text().splitlines() if path.exists() else []
    last: dict[str, list[str]] = {}
    for test, outcome, why in (json.loads(line) for line in lines if line.endswith("]")):  # the last may be cut off
        if last.get(test, [""])[0] != "failed":  # what fails after its call, in a fixture, has failed
            last[test] = [outcome, why]
    count = {word: sum(outcome == word for outcome, _ in last.values()) for word in ("passed", "failed", "skipped")}
    # 5: nothing was collected, which is what modules that skip themselves leave.
    ok = not ended.timed_out and not count["failed"] and ended.status in (0, 5)
    return {**count, "seconds": ended.seconds, "timed_out": ended.timed_out, "status": ended.status, "ok": ok,
            "failing": [[test, why] for test, (outcome, why) in last.items() if outcome == "failed"],
            "unfinished": [test for test, (outcome, _) in last.items() if outcome == "started"]}  # fmt: skip


def _note(test: str, outcome: str, why: str = "") -> None:
    # pytest-xdist's workers hand their reports to a process that notes them.
    if _OUTCOMES in os.environ and not os.environ.get(_WORKER):
        with open(os.environ[_OUTCOMES], "a") as file:
            file.write(json.dumps([test, outcome, why]) + "\n")


def pytest_runtest_logstart(nodeid: str) -> None:
    """Called by pytest before a test."""
    _note(nodeid, "started")


def pytest_runtest_logreport(report: Any) -> None:
    """Called by pytest after each phase of a test: a fixture may fail or skip, too."""
    if report.failed or report.skipped or report.when == "call":
        crash = getattr(report.longrepr, "reprcrash", None)
        # Of a skip longrepr is (file, line, reason).
        why = crash.message if crash else report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        _note(report.nodeid, report.outcome, (str(why or "").strip().splitlines() or [""])[0 if crash else -1][:300])


def pytest_collectreport(report: Any) -> None:
    """Called by pytest when a module has been imported, or has not."""
    if report.failed or report.skipped:
        report.when = "collect"
        pytest_runtest_logreport(report)
