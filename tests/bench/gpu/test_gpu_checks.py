"""What the GPU benchmark runs beside rows: pytest files, the sanitizer, processes with a limit, the compiled core."""

from __future__ import annotations

import importlib.util
import os
import sysconfig
import time

import pytest

from bench.gpu import machine, process, sanitized_calls, sanitizer, tests
from bench.gpu.process import ROOT, Ended

pytestmark = pytest.mark.usefixtures("alone")  # time limits of a few seconds, processes that take as long to start

# ---- pytest files ---------------------------------------------------------------------------------------------------

HAS_XDIST = importlib.util.find_spec("xdist") is not None
FIXTURE = "import pytest\n@pytest.fixture\ndef f():\n    yield\n    assert 3 == 4\n"


def run_file(tmp_path, source, seconds=120.0):
    path = tmp_path / "test_some.py"
    path.write_text(source)
    return tests.run_file(str(path), seconds, tmp_path / "log")


def test_files_are_there():
    assert all((ROOT / file).is_file() for of in tests.FILES.values() for file in of)
    assert set(tests.DRY_FILES) < {file for of in tests.FILES.values() for file in of}


@pytest.mark.slow
def test_outcomes_are_counted_and_named_also_when_they_are_cut_off(tmp_path):
    source = ("import pytest, time\ndef test_a(): pass\ndef test_b(): assert 1 == 2\n"
              "def test_c(): pytest.skip('x')\ndef test_d(): time.sleep(600)\n")  # fmt: skip
    found = run_file(tmp_path, source, 20.0)
    assert found["timed_out"] and not found["ok"] and found["seconds"] < 30
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 1, 1)
    ((test, why),) = found["failing"]
    assert test.endswith("::test_b") and why.startswith("assert 1 == 2")
    assert [test.rpartition("::")[2] for test in found["unfinished"]] == ["test_d"]


@pytest.mark.slow
@pytest.mark.parametrize("source, counts, ok", [
    ("import pytest\npytest.skip('no GPU', allow_module_level=True)\n", (0, 0, 1), True),
    ("import nothing_of_that_name\n", (0, 1, 0), False),
    # Fails after the call has passed; after it has failed, where the first failure is told; and a process that dies:
    # pytest-xdist outlives it, and counts what it was busy with as failed.
    (FIXTURE + "def test_a(f): pass\n", (0, 1, 0), False),
    (FIXTURE + "def test_a(f): assert 1 == 2\n", (0, 1, 0), False),
    ("import os\ndef test_a(): pass\ndef test_b(): os.abort()\n", (1, int(HAS_XDIST), 0), False),
])  # fmt: skip
def test_what_is_no_plain_pass_or_failure(tmp_path, source, counts, ok):
    found = run_file(tmp_path, source)
    log = (tmp_path / "log").read_text()
    assert (found["passed"], found["failed"], found["skipped"], found["ok"]) == (*counts, ok), log
    if "1 == 2" in source:
        assert found["failing"][0][1].startswith("assert 1 == 2")


# ---- the sanitizer --------------------------------------------------------------------------------------------------


def said(*lines):
    return [f"========= {line}" for line in lines]


CALLS = ["hadamard f=100 n=5 c=259: loss, reverse KL", "hadamard f=100 n=5 c=259: assign"]
START, DONE, CLEAN = [*said("COMPUTE-SANITIZER"), *CALLS], "all 2 calls made", *said("ERROR SUMMARY: 0 errors")
INVALID = said("Invalid __global__ read of size 4 bytes", "    at cplearn::cuda::column_sums(...) column_sums.cuh:31",
               "    Access at 0x7f1c3a000404 is out of bounds", "")  # fmt: skip
RACE = said("Error: Race reported between Write access at cplearn::cuda::best_codes(...)+0x450 in best_codes.cuh:40",
            "    and Read access at cplearn::cuda::best_codes(...)+0x4d0 in best_codes.cuh:44 [508 hazards]",
            "RACECHECK SUMMARY: 20 hazards displayed (256 errors, 3 warnings)")  # fmt: skip
BARRIER = said("Barrier error detected. Divergent thread(s) in block.", "ERROR SUMMARY: 8 errors")
NO_HAZARD = said("RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)")
WARNING = said("Warning: Race reported between Write access at cplearn::cuda::best_codes(...)+0x450",
               "RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)")  # fmt: skip
MANY = said(
    "ERROR SUMMARY: 769 errors", "ERROR SUMMARY: 749 errors were not printed. Use --print-limit option to adjust"
)
REFUSED = said("COMPUTE-SANITIZER", "Error: Target application terminated before first instrumented API call")


@pytest.mark.parametrize("lines, timed_out, errors, warnings, ok, first", [
    ([*START, DONE, CLEAN], False, 0, 0, True, None), ([*START, DONE, *NO_HAZARD], False, 0, 0, True, None),
    ([*START, *WARNING, DONE], False, 0, 1, True, "Warning: Race"),  # no error, yet to be read by someone
    ([*START, *INVALID, DONE, *MANY], False, 769, 0, False, "Invalid __global__ read"),
    ([*START, *RACE, DONE], False, 256, 3, False, "Error: Race"),
    ([*START, *BARRIER, DONE], False, 8, 0, False, "Barrier error"),
    ([*START, *INVALID], True, 1, None, False, "Invalid"),  # cut off before it could count
    (START, True, None, None, True, f"out of time during {CALLS[1]}"),
    (REFUSED, False, None, None, True, "Error: Target application"), ([], False, None, None, True, None),
    # The program failed midway; the tool has nothing to say against it, and yet little has been looked at.
    ([*START, "RuntimeError: no", CLEAN], False, 0, 0, False, "RuntimeError: no"),
])  # fmt: skip
def test_a_run_of_the_sanitizer_is_read(lines, timed_out, errors, warnings, ok, first):
    found = sanitizer.report(Ended("\n".join(lines), 0, 12.0, timed_out))
    assert (found["errors"], found["warnings"], found["ok"]) == (errors, warnings, ok)
    assert found["complete"] == (DONE in lines) and found["calls"] == sum(call in lines for call in CALLS)
    assert found["lines"][0].startswith(first) if first else found["lines"] == [], found["lines"]


def test_a_tool_is_given_the_calls(tmp_path):
    """A program in the tool's place: it prints what a clean run prints, and its arguments."""
    program = tmp_path / "program"
    lines = "; ".join(f"echo '{line}'" for line in (CALLS[0], DONE, CLEAN))
    program.write_text(f'#!/bin/sh\necho "$@" $PYTORCH_NO_CUDA_MEMORY_CACHING\n{lines}\n')
    program.chmod(0o755)
    found = sanitizer.run_tool("memcheck", 60.0, tmp_path / "log", ("--device", "cpu"), (str(program),))
    assert found["ok"] and found["complete"] and not found["timed_out"]
    told = (tmp_path / "log").read_text()
    assert "--tool memcheck " in told and "-m bench.gpu.sanitized_calls --device cpu 1\n" in told


def test_the_calls_are_those_of_every_function(capsys, monkeypatch):
    options = ["--backend", "torch", "--device", "cpu", "--most-features", "65"]
    assert sanitized_calls.main(options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"all {len(lines) - 1} calls made"
    named = {line.split(": ")[1].split(", ")[0] for line in lines[:-1]}
    assert {*sanitized_calls.UNARY, "loss", "loss without gradient", "assign"} == named
    found = sanitizer.report(Ended("\n".join([*lines, CLEAN]), 0, 1.0, False))
    assert found["ok"] and found["calls"] == len(lines) - 1  # the two agree on what a call's line looks like
    right = sanitized_calls.cpk.expected_code
    monkeypatch.setattr(sanitized_calls.cpk, "expected_code", lambda *a, **k: right(*a, **k) / 0)
    assert sanitized_calls.main(options) == 1 and "not finite" in capsys.readouterr().out


# ---- processes and the compiled core --------------------------------------------------------------------------------


def test_a_process_is_ended_with_what_it_started(tmp_path):
    ended = process.run(["sh", "-c", f"echo begun; (sleep 3; echo > {tmp_path}/late) & wait"], 1.0, tmp_path / "log")
    assert ended.timed_out and ended.text == "begun\n"
    time.sleep(3)
    assert not (tmp_path / "late").exists()
    ended = process.run(["sh", "-c", "echo $A; exit 3"], 60.0, tmp_path / "log", {"A": "b"})
    assert (ended.text, ended.status, ended.timed_out) == ("b\n", 3, False)


def test_a_hanging_step_leaves_time_for_the_next(monkeypatch):
    monkeypatch.setattr(process.time, "monotonic", lambda: 100.0)
    assert list(process.in_turn(("a", "b"), 110.0)) == [("a", pytest.approx(6)), ("b", pytest.approx(10))]
    assert list(process.in_turn(("a",), 90.0)) == [("a", 0.0)]


def test_a_checkout_without_a_core_or_with_an_older_one_gets_that_of_the_installed_package(tmp_path):
    name = f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
    checkout, installed = (tmp_path / part for part in ("checkout", "installed"))
    own, other = (folder / "cplearn_kernels" / name for folder in (checkout, installed))
    for file in (own, other):
        file.parent.mkdir(parents=True)
    other.write_text("core")
    assert machine.adopt_core(checkout, [str(checkout)]) is None
    assert "copied" in machine.adopt_core(checkout, [str(checkout), str(installed)]) and own.read_text() == "core"
    other.write_text("another")
    for seconds, expected in ((-10, "core"), (10, "another")):  # the checkout's built in place since; installed since
        os.utime(other, (own.stat().st_mtime + seconds,) * 2)
        assert bool(machine.adopt_core(checkout, [str(installed)])) == (seconds > 0) and own.read_text() == expected
