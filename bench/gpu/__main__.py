"""Tests and benchmarks the library on this machine's GPU within a few minutes; writes JSON, prints a table last.

The tests run first, then backend "cuda" under compute-sanitizer, then the rows of bench/gpu_rows.py in order of
importance; what does not fit into the time is recorded as skipped. Interrupted or not, DIR holds what was measured
until then.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench import gpu_core, gpu_sanitizer, gpu_tests
from bench.gpu_bars import judge
from bench.gpu_process import ROOT, end
from bench.gpu_record import FILE, LOG_FILE, LOST, PROGRESS_FILE, TESTS_FILE, Record, read_json, write_json
from bench.gpu_rows import LIBRARY, plan
from bench.gpu_table import text

# Of the whole time, what tests and sanitizer may take where rows follow, which are why one is here; of that, what the
# tests may take where the sanitizer follows.
CHECKS_SHARE, TESTS_SHARE = 0.5, 0.62
SANITIZED = "cuda"  # the backend: the others' kernels are made by compilers
START_SECONDS = 90.0  # a worker imports torch, starts the device, measures its rates
WORKER = ("-m", "bench.gpu_worker")
MOST_WORKERS = 8
RESERVE_SECONDS = 4.0  # for ending the worker, judging and printing


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
                end(process)
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
    """0, or 1 where a result was wrong, a test failed, the sanitizer found an error, or nothing could be measured."""
    wrong = any(row["wrong"] for row in record["rows"])
    failed = any(record.get(key) is not None and not record[key]["ok"] for key in ("tests", "sanitizer"))
    cells = (item for row in record["rows"] for item in row["cells"].items())
    measured = any(name.startswith(LIBRARY) and "median" in cell for name, cell in cells)
    return int(wrong or failed or not (measured or record["settings"].get("skip_rows")))


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    given = _parser().parse_args(arguments)
    began = time.monotonic()
    until = began + 60 * given.minutes - RESERVE_SECONDS
    if given.show is not None:
        print(text(json.loads(given.show.read_text())))
        return 0
    if given.out is None:
        print("bench.gpu: --out DIR says where the JSON goes", file=sys.stderr)
        return 2
    refused: dict[str, str] = {}
    if not given.dry_run:
        import torch

        if not torch.cuda.is_available():
            reason = "torch sees no CUDA or ROCm GPU here; --dry-run goes the whole way on the CPU"
            print(f"bench.gpu: {reason}", file=sys.stderr)
            return 2
        adopted = gpu_core.adopt()
        if adopted:
            print(f"bench.gpu: {adopted}", file=sys.stderr)
        from bench.gpu_machine import usable_backends

        refused = usable_backends(given.backends, dry_run=False)[1]
    folder = given.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name in (FILE, TESTS_FILE):
        (folder / name).unlink(missing_ok=True)
    bars = plan(given.dry_run)[1]
    record, reason = Record(folder), "interrupted"
    options = {"dry_run": given.dry_run, "backends": given.backends, "rounds": given.rounds, "commit": given.commit}
    record.content["settings"] = {**options, "minutes": given.minutes, "skip_rows": given.skip_rows,
                                  "backends_refused": refused}  # fmt: skip
    record.save()
    checks_until = until if given.skip_rows else began + CHECKS_SHARE * (until - began)
    sanitize = _sanitizes(given, refused)
    try:
        if not given.skip_tests:
            share = TESTS_SHARE if sanitize else 1.0
            _test(record, gpu_tests.test_files(given.backends, refused), share * (checks_until - time.monotonic()))
        if sanitize:
            # In a dry run the calls go to what every machine has, and only a few of them.
            told = ("--backend", "torch", "--device", "cpu", "--most-features", "100") if given.dry_run else ()
            _sanitize(record, checks_until - time.monotonic(), told)
        reason = "left out" if given.skip_rows else measure(folder, options, until)
    except KeyboardInterrupt:
        pass
    content = finish(folder, bars, reason)
    if reason not in ("time", "interrupted", "left out"):
        print(f"bench.gpu: {reason}", file=sys.stderr)
    (folder / "table.txt").write_text(text(content, most=1 << 30) + "\n")
    print(text(content))
    return status(content)


def _sanitizes(given: argparse.Namespace, refused: dict[str, str]) -> bool:
    """As asked; unasked, where the program is at hand and the backend runs and is among those chosen."""
    if given.sanitizer is not None:
        return given.sanitizer
    wanted = given.backends is None or SANITIZED in given.backends
    return wanted and not given.dry_run and SANITIZED not in refused and gpu_sanitizer.available()


def _test(record: Record, files: dict[str, str | None], seconds: float) -> None:
    """Runs the tests; the record is written after every file."""
    outcomes: list[dict[str, Any]] = []
    for outcome in gpu_tests.run_files(files, seconds):
        outcomes.append(outcome)
        record.content["tests"] = gpu_tests.summary(outcomes)
        record.save()
        write_json(record.path.with_name(TESTS_FILE), {"files": outcomes})
    record.content["tests"] = gpu_tests.summary(outcomes)
    record.save()
    print(f"tests: {record.content['tests']['summary']}", file=sys.stderr, flush=True)


def _sanitize(record: Record, seconds: float, options: tuple[str, ...]) -> None:
    """Runs the sanitizer's tools; the record is written after each."""
    outcomes: list[dict[str, Any]] = []
    for outcome in gpu_sanitizer.run_tools(seconds, options):
        outcomes.append(outcome)
        record.content["sanitizer"] = gpu_sanitizer.summary(outcomes)
        record.save()
    print(f"sanitizer: {record.content['sanitizer']['summary']}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    summary, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=summary, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"{rest}\nExit status: 0; 1 where a result disagrees with the reference, a test failed, the\n"
        "sanitizer found an error or nothing could be measured (a bar that is not met does not count); 2 without a GPU.")  # fmt: skip
    parser.add_argument("--out", type=Path, default=None, metavar="DIR",
                        help=f"folder for {FILE}, {TESTS_FILE}, table.txt (the whole table) and {LOG_FILE}; a former "
                        "run's are replaced")
    parser.add_argument("--minutes", type=float, default=8.0, help="time from start to finish (default: 8)")
    parser.add_argument("--backends", type=lambda names: names.split(","), default=None, metavar="NAME[,NAME]",
                        help="backends of the library to test and measure (default: all that run on GPU tensors; in a "
                        "dry run torch)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each column of a row (default: 5)")
    parser.add_argument("--skip-tests", action="store_true", help="leave the tests out")
    parser.add_argument("--sanitizer", action="store_true", default=None,
                        help='run backend "cuda" under compute-sanitizer (default: where that is found)')
    parser.add_argument("--skip-sanitizer", dest="sanitizer", action="store_false", help="leave the sanitizer out")
    parser.add_argument("--skip-rows", action="store_true",
                        help="leave the benchmarks out: tests and sanitizer get all of the time")
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
