"""Tests of what the GPU benchmark does before it measures: the backends' tests, the sanitizer, the compiled core."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import sysconfig
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # bench/ is used from the checkout and never installed

from bench import gpu, gpu_core, gpu_process, gpu_sanitized_calls, gpu_sanitizer, gpu_tests  # noqa: E402
from bench.gpu_process import Ended  # noqa: E402
from bench.gpu_record import FILE  # noqa: E402
from bench.gpu_table import text  # noqa: E402

# ---- the tests that it runs -----------------------------------------------------------------------------------------


def _run(path, seconds):
    (found,) = gpu_tests.run_files({str(path): None}, seconds)
    return found


HAS_XDIST = importlib.util.find_spec("xdist") is not None


def test_outcomes_are_counted_and_named_also_when_they_are_cut_off(tmp_path):
    path = tmp_path / "test_some.py"
    path.write_text("import pytest, time\ndef test_a(): pass\ndef test_b(): assert 1 == 2\n"
                    "def test_c(): pytest.skip('x')\ndef test_d(): time.sleep(60)\n")  # fmt: skip
    began = time.monotonic()
    found = _run(path, 6.0)
    assert found["timed_out"] and not found["ok"] and time.monotonic() - began < 9
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 1, 1)
    (failing,) = found["failing"]
    assert failing["test"].endswith("::test_b") and failing["why"].startswith("assert 1 == 2")
    assert [test.rpartition("::")[2] for test in found["unfinished"]] == ["test_d"]
    summary = gpu_tests.summary([found])
    assert "1 failed" in summary["summary"] and "out of time" in summary["summary"] and not summary["ok"]
    printed = text({"machine": {}, "settings": {}, "tests": summary, "rows": [], "bars": []})
    assert "::test_b: assert 1 == 2" in printed and "unfinished" in printed and "tail" not in summary["files"][0]


@pytest.mark.parametrize(
    "source, counts, ok",
    [
        ("import pytest\npytest.skip('no GPU', allow_module_level=True)\n", (0, 0, 1), True),
        ("import nothing_of_that_name\n", (0, 1, 0), False),
        # Fails after the call has passed; and a process that dies, whose outcomes until then stay.
        ("import pytest\n@pytest.fixture\ndef f():\n    yield\n    assert 0\ndef test_a(f): pass\n", (0, 1, 0), False),
        # pytest-xdist outlives the process, and counts what it was busy with as failed.
        ("import os\ndef test_a(): pass\ndef test_b(): os.abort()\n", (1, int(HAS_XDIST), 0), False),
    ],
)
def test_what_is_no_plain_pass_or_failure(tmp_path, source, counts, ok):
    path = tmp_path / "test_some.py"
    path.write_text(source)
    found = _run(path, 60.0)
    assert (found["passed"], found["failed"], found["skipped"], found["ok"]) == (*counts, ok), found["tail"]


def test_the_first_failure_of_a_test_is_the_one_told(tmp_path):
    path = tmp_path / "test_some.py"
    path.write_text("import pytest\n@pytest.fixture\ndef f():\n    yield\n    assert 3 == 4\n"
                    "def test_a(f): assert 1 == 2\n")  # fmt: skip
    assert [entry["why"][:13] for entry in _run(path, 60.0)["failing"]] == ["assert 1 == 2"]


def test_files_are_those_of_the_backends_and_a_hanging_one_leaves_time_for_the_next(tmp_path, monkeypatch):
    files = gpu_tests.test_files(None, {"cuda": "no device"})
    assert all((reason == "no device") == (file in gpu_tests.TEST_FILES["cuda"]) for file, reason in files.items())
    assert (
        "tests/kernels/triton/test_triton.py" in files
        and "tests/kernels/triton/test_triton.py" not in gpu_tests.test_files(["cuda"], {})
    )
    given = []

    def run(command, seconds):
        given.append(seconds)
        return Ended([], 0, 0.0, False)

    monkeypatch.setattr(gpu_tests, "run", run)
    a, b, c = gpu_tests.run_files({"a": None, "b": "no device", "c": None}, 100.0)
    assert b == {"file": "b", "left_out": "no device"}
    assert given == [pytest.approx(60, abs=1), pytest.approx(100, abs=1)]
    summary = gpu_tests.summary([a, b, c])
    assert summary["ok"] and "b: left out (no device)" in summary["summary"]
    assert list(gpu_tests.run_files({"a": None}, 0.0)) == [{"file": "a", "left_out": "time"}]


# ---- the sanitizer --------------------------------------------------------------------------------------------------

CALLS = ["hadamard f=100 n=5 c=259: loss, reverse KL", "hadamard f=100 n=5 c=259: assign"]
DONE = "all 2 calls made"
START, CLEAN = "========= COMPUTE-SANITIZER", "========= ERROR SUMMARY: 0 errors"
INVALID = [
    "========= Invalid __global__ read of size 4 bytes",
    "=========     at cplearn::cuda::column_sums(cplearn::cuda::ColumnSumsArguments)+0x1f0 in column_sums.cuh:31",
    "=========     by thread (64,0,0) in block (3,0,0)",
    "=========     Access at 0x7f1c3a000404 is out of bounds",
    "=========",
]
RACE = [
    "========= Error: Race reported between Write access at cplearn::cuda::best_codes(...)+0x450 in best_codes.cuh:40",
    "=========     and Read access at cplearn::cuda::best_codes(...)+0x4d0 in best_codes.cuh:44 [508 hazards]",
    "=========",
]


def _report(*lines, status=0, timed_out=False):
    return gpu_sanitizer.report(Ended(list(lines), status, 12.0, timed_out))


def test_a_clean_run_is_read():
    found = _report(START, *CALLS, DONE, CLEAN)
    assert found["ok"] and found["complete"] and (found["errors"], found["calls"], found["lines"]) == (0, 2, [])
    found = _report(START, *CALLS, DONE, "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)")
    assert found["ok"] and (found["errors"], found["warnings"], found["refused"]) == (0, 0, None)
    warning = "========= Warning: Race reported between Write access at cplearn::cuda::best_codes(...)+0x450"
    last = "========= RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)"
    found = _report(START, *CALLS, warning, DONE, last)  # no error, and yet it is to be read by someone
    assert found["ok"] and (found["errors"], found["warnings"], len(found["lines"])) == (0, 1, 1)


@pytest.mark.parametrize(
    "lines, errors, first",
    [
        (
            [
                *INVALID,
                DONE,
                "========= ERROR SUMMARY: 769 errors",
                "========= ERROR SUMMARY: 749 errors were not printed. Use --print-limit option to adjust",
            ],
            769,
            "Invalid __global__ read",
        ),
        ([*INVALID, DONE, "========= ERROR SUMMARY: 1 error"], 1, "Invalid __global__ read"),
        (
            [*RACE, DONE, "========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)"],
            1,
            "Error: Race reported",
        ),
        (
            [*RACE, DONE, "========= RACECHECK SUMMARY: 20 hazards displayed (256 errors, 3 warnings)"],
            256,
            "Error: Race",
        ),
        (
            [
                "========= Uninitialized __global__ memory read of size 4 bytes",
                DONE,
                "========= ERROR SUMMARY: 8 errors",
            ],
            8,
            "Uninitialized",
        ),
        (INVALID, 1, "Invalid"),  # cut off before it could count
    ],
)
def test_a_run_that_finds_something_is_read(lines, errors, first):
    found = _report(START, *CALLS, *lines, status=86, timed_out=lines is INVALID)
    assert not found["ok"] and found["errors"] == errors
    assert found["lines"][0].startswith(first) and not any("SUMMARY" in line for line in found["lines"])
    summary = gpu_sanitizer.summary([{"tool": "memcheck", **found, "seconds": 12.0}])
    assert not summary["ok"] and f"memcheck: {errors} errors" in summary["summary"]
    record = {"machine": {}, "settings": {}, "tests": None, "sanitizer": summary, "rows": [], "bars": []}
    assert first in text(record) and gpu.status(record) == 1


@pytest.mark.parametrize(
    "lines, status, timed_out, words, ok",
    [
        ([START, CALLS[0]], -9, True, f"out of time during: {CALLS[0]}", True),
        ([START], -9, True, "out of time before the first call", True),
        (
            [START, "========= Error: Target application terminated before first instrumented API call"],
            1,
            False,
            "Error: Target application terminated before",
            True,
        ),
        (
            ["compute-sanitizer: error while loading shared libraries"],
            127,
            False,
            "compute-sanitizer: error while",
            True,
        ),
        ([], 1, False, "no output, status 1", True),
        # The program failed midway; the tool has nothing to say against it, and yet little has been looked at.
        (
            [START, CALLS[0], "RuntimeError: no", CLEAN],
            1,
            False,
            "the program ended with status 1: RuntimeError",
            False,
        ),
        (
            [START, CALLS[0], "a result is not finite", CLEAN],
            1,
            False,
            "the program ended with status 1: a result",
            False,
        ),
    ],
)
def test_a_run_without_a_result_keeps_the_words(lines, status, timed_out, words, ok):
    found = _report(*lines, status=status, timed_out=timed_out)
    assert found["refused"].startswith(words) and found["ok"] is ok and not found["complete"]
    assert words in gpu_sanitizer.summary([{"tool": "memcheck", **found, "seconds": 1.0}])["summary"]


def test_tools_run_in_order_within_their_time(tmp_path, monkeypatch):
    """A program in the tool's place: it prints its arguments and what a clean run prints."""
    tool = tmp_path / gpu_sanitizer.PROGRAM
    log = f">> {tmp_path}/log\n"
    tool.write_text(f"#!/bin/sh\necho \"$@\" {log}echo $PYTORCH_NO_CUDA_MEMORY_CACHING {log}"
                    f"echo '{CALLS[0]}'\necho '{DONE}'\necho '{CLEAN}'\n")  # fmt: skip
    tool.chmod(0o755)
    monkeypatch.setattr(gpu_sanitizer.shutil, "which", lambda name: str(tool))
    found = list(gpu_sanitizer.run_tools(600.0, ("--device", "cpu")))
    assert [entry["tool"] for entry in found] == ["memcheck", "racecheck", "initcheck"] and all(e["ok"] for e in found)
    arguments, caching, *_ = (tmp_path / "log").read_text().splitlines()
    assert arguments.startswith("--tool memcheck ") and arguments.endswith("-m bench.gpu_sanitized_calls --device cpu")
    assert caching == "1"
    assert [entry["left_out"] for entry in gpu_sanitizer.run_tools(1.0)] == ["time"] * 3
    monkeypatch.setattr(gpu_sanitizer.shutil, "which", lambda name: str(tmp_path / "absent"))
    assert all("cannot be started" in entry["left_out"] for entry in gpu_sanitizer.run_tools(600.0))
    monkeypatch.setattr(gpu_sanitizer.shutil, "which", lambda name: None)
    assert all("was not found" in entry["left_out"] for entry in gpu_sanitizer.run_tools(600.0))


def test_the_calls_are_those_of_every_function(capsys, monkeypatch):
    options = ["--backend", "torch", "--device", "cpu", "--most-features", "65"]
    assert gpu_sanitized_calls.main(options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"all {len(lines) - 1} calls made"
    named = {line.split(": ")[1] for line in lines[:-1]}
    assert {"projector_softmax", "projector_logsumexp", "expected_code", "mean_assignment", "assign"} <= named
    found = gpu_sanitizer.report(Ended([*lines, CLEAN], 0, 1.0, False))
    assert found["ok"] and found["calls"] == len(lines) - 1  # the two agree on what a call's line looks like
    right = gpu_sanitized_calls.cpk.expected_code
    monkeypatch.setattr(gpu_sanitized_calls.cpk, "expected_code", lambda *a, **k: right(*a, **k) / 0)
    assert gpu_sanitized_calls.main(options) == 1 and "not finite" in capsys.readouterr().out


# ---- the command ----------------------------------------------------------------------------------------------------


def test_checks_alone_and_a_missing_sanitizer(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_sanitizer.shutil, "which", lambda name: None)
    options = ["--out", str(tmp_path), "--dry-run", "--skip-tests", "--skip-rows", "--sanitizer"]
    assert gpu.main(options) == 0
    record = json.loads((tmp_path / FILE).read_text())
    assert "compute-sanitizer was not found" in record["sanitizer"]["summary"] and record["rows"] == []
    assert gpu.main([*options[:-1], "--skip-sanitizer"]) == 0
    assert json.loads((tmp_path / FILE).read_text())["sanitizer"] is None


# ---- the compiled core ----------------------------------------------------------------------------------------------


def test_a_checkout_without_a_core_or_with_an_older_one_gets_that_of_the_installed_package(tmp_path):
    name = f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
    checkout, installed, empty = (tmp_path / part for part in ("checkout", "installed", "empty"))
    for folder in (checkout, installed):
        (folder / "cplearn_kernels").mkdir(parents=True)
    (installed / "cplearn_kernels" / name).write_text("core")
    assert gpu_core.adopt(checkout, [str(checkout), str(empty)]) is None
    assert "had no compiled core" in gpu_core.adopt(checkout, [str(checkout), str(empty), str(installed)])
    assert (checkout / "cplearn_kernels" / name).read_text() == "core"
    assert gpu_core.adopt(checkout, [str(installed)]) is None
    own, other = (folder / "cplearn_kernels" / name for folder in (checkout, installed))
    other.write_text("another")
    os.utime(other, (own.stat().st_mtime - 10,) * 2)
    assert gpu_core.adopt(checkout, [str(installed)]) is None and own.read_text() == "core"  # built in place since
    os.utime(other, (own.stat().st_mtime + 10,) * 2)
    assert "had an older compiled core" in gpu_core.adopt(checkout, [str(installed)]) and own.read_text() == "another"


def test_a_process_is_ended_with_what_it_started(tmp_path):
    ended = gpu_process.run(["sh", "-c", f"(sleep 2; echo > {tmp_path}/late) & wait"], 1.0)
    assert ended.timed_out and ended.seconds < 2
    time.sleep(2)
    assert not (tmp_path / "late").exists()
    assert gpu_process.run(["sh", "-c", "echo $A; exit 3"], 5.0, {"A": "b"}).lines == ["b"]
