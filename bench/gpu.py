"""Tests and benchmarks the library on this machine's GPU within a few minutes; writes JSON, prints a table last.

The tests run first, then the rows of bench/gpu_rows.py in order of importance; what does not fit into the time is
recorded as skipped. Interrupted or not, DIR holds what was measured until then.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.gpu_bars import judge
from bench.gpu_record import FILE, LOG_FILE, LOST, PROGRESS_FILE, TESTS_FILE, Record, read_json, write_json
from bench.gpu_rows import LIBRARY, plan
from bench.gpu_table import text

ROOT = Path(__file__).resolve().parent.parent
# Those that exist are run; they skip themselves without a GPU.
TEST_FILES = ("tests/test_triton_gpu.py", "tests/test_triton.py")
TEST_SECONDS = 150.0
START_SECONDS = 90.0  # a worker imports torch, starts the device, measures its rates
WORKER = ("-m", "bench.gpu_worker")
MOST_WORKERS = 8
RESERVE_SECONDS = 4.0  # for ending the worker, judging and printing


def run_tests(files: list[str], seconds: float) -> dict[str, Any]:
    """Runs pytest on files of the repository and counts the outcomes, also of a run that had to be ended.

    Returns:
        `passed`, `failed`, `skipped` (errors count as failed), `seconds`, `timed_out`, `ok`, `tail` (the last lines of
        the output) and `summary`, one sentence.
    """
    if not files:
        return {"passed": 0, "failed": 0, "skipped": 0, "seconds": 0.0, "timed_out": False, "ok": True, "tail": [],
                "summary": "none of the files exists"}
    options = ["-v", "-ra", "--tb=short", "--color=no", "-p", "no:cacheprovider"]
    if importlib.util.find_spec("xdist"):
        options += ["-n", str(min(12, os.cpu_count() or 1))]  # nearly all of their time is Triton's compiler
    command = [sys.executable, "-m", "pytest", *options, *files]
    began = time.monotonic()
    with tempfile.TemporaryFile(mode="w+") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            pass
        timed_out = process.poll() is None
        _end(process)
        output.seek(0)
        lines = output.read().splitlines()
    took = time.monotonic() - began
    counts = {word: _count(lines, word) for word in ("passed", "failed", "skipped", "error")}
    failed = counts["failed"] + counts["error"]
    # 5: nothing was collected, which is what modules that skip themselves leave.
    ok = not timed_out and failed == 0 and process.returncode in (0, 5)
    summary = f"{counts['passed']} passed, {failed} failed, {counts['skipped']} skipped in {took:.0f} s"
    summary += " (ended: out of time)" if timed_out else ""
    summary += f" (pytest ended with status {process.returncode})" if not ok and not failed and not timed_out else ""
    return {"passed": counts["passed"], "failed": failed, "skipped": counts["skipped"], "seconds": took,
            "timed_out": timed_out, "ok": ok, "tail": lines[-40:], "summary": summary}


def _count(lines: list[str], word: str) -> int:
    """From pytest's last line, or, where a run did not come to it, from the lines of the single tests."""
    if lines and re.fullmatch(r"=+ .* in [\d.]+s.* =+", lines[-1]):
        found = re.search(rf"(\d+) {word}", lines[-1])
        return int(found[1]) if found else 0
    # One process writes "FILE::TEST OUTCOME", several write "[gw0] [ 25%] OUTCOME FILE::TEST".
    outcome = re.compile(rf"^(\[gw\d+\] \[ *\d+%\] {word.upper()} |\S+::.* {word.upper()}\b)")
    return sum(outcome.search(line) is not None for line in lines)


def measure(folder: Path, options: dict[str, Any], deadline: float) -> str:
    """Lets workers measure until the plan is done or the time is over.

    Args:
        folder: where the record is.
        options: `dry_run`, `backends`, `rounds`, `commit` for the worker.
        deadline: on `time.monotonic`.

    Returns:
        Why the rest, if any, was left out.
    """
    progress_path = folder / PROGRESS_FILE
    with (folder / LOG_FILE).open("w") as log:
        for _ in range(MOST_WORKERS):
            progress_path.unlink(missing_ok=True)
            left = deadline - time.monotonic()
            if left <= 0:
                return "time"
            # A moment and not a duration: importing torch takes seconds that the worker could not know of.
            told = json.dumps({**options, "until": time.time() + left})
            command = [sys.executable, *WORKER, str(folder), told]
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                reason = _watch(process, progress_path, deadline)
            finally:
                _end(process)
            if reason in (None, "time"):
                return "time"
            progress = read_json(progress_path)
            if progress is None:  # it never came to a row, and another would not either
                return f"the measuring process {reason}: {_last_line(folder / LOG_FILE)}"
            if process.returncode != LOST:
                record = Record(folder)
                record.blame(progress["row"], progress["columns"], f"{progress['what']}: {reason}")
                record.save()
    return f"{MOST_WORKERS} measuring processes died"


def _watch(process: subprocess.Popen, progress_path: Path, deadline: float) -> str | None:
    """Waits for a worker; None when it is through, else why it is not."""
    began = time.time()
    while process.poll() is None:
        if time.monotonic() > deadline:
            return "time"
        progress = read_json(progress_path) or {"began": began, "limit": START_SECONDS}
        if time.time() - progress["began"] > progress["limit"]:
            return f"ended after {progress['limit']:g} s"
        time.sleep(0.05)
    return None if process.returncode == 0 else f"ended with status {process.returncode}"


def _end(process: subprocess.Popen) -> None:
    """Ends a process started here, with those it started itself (compilers)."""
    if process.poll() is None:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no output"


def finish(folder: Path, bars, reason: str) -> dict[str, Any]:
    """Completes the record: a cell for every column, the bars judged."""
    record = Record(folder)
    record.fill(reason)
    record.content["bars"] = judge(bars, record.content)
    record.save()
    (folder / PROGRESS_FILE).unlink(missing_ok=True)
    return record.content


def status(record: dict[str, Any]) -> int:
    """0, or 1 where a result was wrong, a test failed, or nothing of the library could be measured."""
    wrong = any(row["wrong"] for row in record["rows"])
    failed = record["tests"] is not None and not record["tests"]["ok"]
    cells = (item for row in record["rows"] for item in row["cells"].items())
    measured = any(name.startswith(LIBRARY) and "median" in cell for name, cell in cells)
    return int(wrong or failed or not measured)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    given = _parser().parse_args(arguments)
    end = time.monotonic() + 60 * given.minutes - RESERVE_SECONDS
    if given.show is not None:
        print(text(json.loads(given.show.read_text())))
        return 0
    if given.out is None:
        print("bench.gpu: --out DIR says where the JSON goes", file=sys.stderr)
        return 2
    if not given.dry_run:
        import torch

        if not torch.cuda.is_available():
            reason = "torch sees no CUDA or ROCm GPU here; --dry-run goes the whole way on the CPU"
            print(f"bench.gpu: {reason}", file=sys.stderr)
            return 2
    folder = given.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name in (FILE, TESTS_FILE):
        (folder / name).unlink(missing_ok=True)
    bars = plan(given.dry_run)[1]
    record, reason = Record(folder), "interrupted"
    options = {"dry_run": given.dry_run, "backends": given.backends, "rounds": given.rounds, "commit": given.commit}
    record.content["settings"] = {**options, "minutes": given.minutes}
    record.save()
    try:
        if not given.skip_tests:
            files = [name for name in TEST_FILES if (ROOT / name).exists()]
            # Never more than half of the time: the rows are why one is here.
            tests = run_tests(files, min(TEST_SECONDS, (end - time.monotonic()) / 2))
            write_json(folder / TESTS_FILE, tests)
            record.content["tests"] = {key: value for key, value in tests.items() if key != "tail"}
            record.save()
            print(f"tests: {tests['summary']}", file=sys.stderr)
        reason = measure(folder, options, end)
    except KeyboardInterrupt:
        pass
    content = finish(folder, bars, reason)
    if reason not in ("time", "interrupted"):
        print(f"bench.gpu: {reason}", file=sys.stderr)
    printed = text(content)
    (folder / "table.txt").write_text(printed + "\n")
    print(printed)
    return status(content)


def _parser() -> argparse.ArgumentParser:
    summary, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=summary, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"{rest}\nExit status: 0; 1 where a result disagrees with the reference, a test failed or nothing\n"
        "could be measured (a bar that is not met does not count); 2 without a GPU.")  # fmt: skip
    parser.add_argument("--out", type=Path, default=None, metavar="DIR",
                        help=f"folder for {FILE}, {TESTS_FILE}, table.txt and {LOG_FILE}; a former run's are replaced")
    parser.add_argument("--minutes", type=float, default=8.0, help="time from start to finish (default: 8)")
    parser.add_argument("--backends", type=lambda names: names.split(","), default=None, metavar="NAME[,NAME]",
                        help="backends of the library (default: all that run on GPU tensors; in a dry run torch)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each column of a row (default: 5)")
    parser.add_argument("--skip-tests", action="store_true", help="leave the tests out")
    parser.add_argument("--dry-run", action="store_true",
                        help="go the whole way on CPU tensors with tiny shapes and a wall clock; needs no GPU")
    parser.add_argument("--commit", default=None, help="the commit to record where the sources are no git checkout")
    parser.add_argument("--show", type=Path, default=None, metavar="FILE", help="print the table of a gpu.json and end")
    return parser


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)  # so that who is told to end still prints what there is
    sys.exit(main())
