"""`python -m bench.gpu` on a machine without a GPU: the dry run, crashes, hangs, targets, table, exit status."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import cplearn_kernels as cpk
from bench.cases import FORMULAS, Case
from bench.gpu import __main__ as command
from bench.gpu import measure, record, tests
from bench.gpu.rows import BACKENDS, EAGER, ROWS, columns, judge, step_of, tiny
from bench.gpu.table import text
from bench.targets import Target

pytestmark = pytest.mark.usefixtures("alone")  # time limits of a few seconds, processes that take as long to start

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")
TINY = Case(5, 8, 64, ("eager",))


def start(folder, *options):
    told = [sys.executable, "-m", "bench.gpu", "--out", str(folder), "--dry-run", "--rounds", "2", *options]
    return subprocess.Popen(told, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def entries_of(folder):
    return {entry["step"]: entry for entry in record.read(folder / record.FILE)}


@pytest.fixture
def described(monkeypatch):
    """The command in this process, without the one that describes the machine."""

    def machine(self, seconds):
        self.backends = {"cuda": "no device", "triton": "no device", "torch": None}
        self.add("machine", "machine", {"gpu": None, "backends": self.backends, "dry_run": True})

    monkeypatch.setattr(command.Run, "machine", machine)
    monkeypatch.setattr(command, "adopt_core", lambda: None)


# ---- the command ----------------------------------------------------------------------------------------------------


def test_a_dry_run_goes_the_whole_way(tmp_path):
    """One tiny row beside all formulas but the compiled ones."""
    process = start(tmp_path, "--steps", "rows", "--rows", "n64-f2048-c16384 beside eager")
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, out + error
    entries = entries_of(tmp_path)
    (row,) = [entry for entry in entries.values() if entry["group"] == "rows"]
    assert row["busy"] is None and row["wrong"] == [] and set(row["cells"]) == {"torch", *EAGER}
    assert all(len(cell["seconds"]) == 2 and "error" not in cell for cell in row["cells"].values())
    assert row["cells"]["torch"]["accuracy"]["gradient"] < 1e-5
    assert out == (tmp_path / "table.txt").read_text() == text(record.read(tmp_path / record.FILE)) + "\n"
    assert "DRY RUN" in out and "cplearn_loss H" in out and "no backend cuda" in out


@pytest.mark.slow
def test_whoever_ends_it_gets_what_there_is(tmp_path):
    process = start(tmp_path, "--steps", "sanitizer,rows", "--rounds", "300")
    until = time.monotonic() + 120
    while not any(entry["group"] == "rows" for entry in entries_of(tmp_path).values()) and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=60)
    assert entries_of(tmp_path)["calls"]["complete"] and entries_of(tmp_path)["calls"]["ok"]
    assert "interrupted" in error and "ended hadamard-n35-f128-c16385" in out and process.returncode == 1


def test_tests_come_first_and_their_failures_are_told(tmp_path, described, monkeypatch, capsys):
    (tmp_path / "test_some.py").write_text("def test_a(): assert 0\n")
    monkeypatch.setattr(tests, "DRY_FILES", (str(tmp_path / "test_some.py"),))
    assert command.main(["--out", str(tmp_path), "--dry-run", "--steps", "tests"]) == 1
    assert "::test_a: assert 0" in capsys.readouterr().out


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch, capsys):
    described = {"gpu": None, "backends": {}}
    monkeypatch.setattr(command, "adopt_core", lambda: None)
    monkeypatch.setattr(command, "run", lambda *_: command.sanitizer.Ended(json.dumps(described), 0, 1.0, False))
    assert command.main(["--out", str(tmp_path)]) == 2
    assert "no CUDA or ROCm GPU" in capsys.readouterr().err


FAKE = """
import os, sys, time, unittest.mock
from pathlib import Path
for name in ("torch", "bench.implementations", "bench.accuracy"):  # seconds to import
    sys.modules[name] = unittest.mock.MagicMock()
from bench.gpu import measure, record, rows
measure.most_seconds = lambda row: 2.0
def fake(row, options, device):
    entry = {"group": "rows", "step": rows.step_of(row), "busy": "turns", "cells": {}, "wrong": []}
    record.append(Path(options["record"]), entry)
    if row.function == "loss_graph":
        os.abort()
    if row.num_features == 128:
        time.sleep(60)
    cells = {"torch": {"seconds": [1.0], "median": 1.0}}
    record.append(Path(options["record"]), {**entry, "busy": None, "cells": cells})
measure.measure = fake
measure.main(sys.argv[1:])
"""


def test_a_crash_and_a_hang_cost_a_row_each(tmp_path, described, monkeypatch, capsys):
    monkeypatch.setattr(command, "MEASURE", ("-c", FAKE))
    options = ["--out", str(tmp_path), "--dry-run", "--steps", "rows", "--rows", "graph|dense", "--seconds", "280"]
    assert command.main(options) == 1
    crashed, hung, measured = [entry for entry in entries_of(tmp_path).values() if entry["group"] == "rows"]
    assert crashed["step"].startswith("loss_graph") and crashed["busy"] and hung["busy"] and measured["busy"] is None
    assert measured["cells"]["torch"]["median"] == 1.0
    assert "Timeout" in (tmp_path / "log.txt").read_text()
    assert capsys.readouterr().out.count("ended ") == 2


def test_a_process_that_cannot_measure_ends_it(tmp_path, described, monkeypatch):
    monkeypatch.setattr(command, "MEASURE", ("-c", "import sys; sys.exit('no such device')"))
    assert command.main(["--out", str(tmp_path), "--dry-run", "--steps", "rows"]) == 1
    assert len(entries_of(tmp_path)) == 2 and "no such device" in (tmp_path / "log.txt").read_text()


# ---- rows and targets -----------------------------------------------------------------------------------------------


def test_rows_are_distinct_and_targets_ask_for_what_is_measured():
    assert len(set(map(step_of, ROWS))) == len({step_of(tiny(row)) for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert set(row.implementations) <= set(FORMULAS) and ("loss" in row.function or hasattr(cpk, row.function))
        for target in row.targets:
            assert target.of in columns(row, BACKENDS) and str(target)
            assert not target.against or target.against in row.implementations
    assert {target.of for row in ROWS for target in row.targets} == {"cuda", "triton"}


def _cell(*seconds, grown=10**6):
    return {"seconds": list(seconds), "median": sorted(seconds)[len(seconds) // 2], "growth_bytes": grown}


def _entry(wrong=(), **cells):
    return {"group": "rows", "step": step_of(TINY), "busy": None, "wrong": list(wrong), "cells": cells}


@pytest.mark.parametrize("target, cells, measured, met", [
    (Target("rate", 6400, of="cuda"), {"cuda": _cell(0.1)}, 6400, True),
    (Target("rate", 6401, of="cuda"), {"cuda": _cell(0.1)}, 6400, False),
    (Target("rate", 1, of="triton"), {"cuda": _cell(0.1)}, None, None),
    (Target("rate", 1, of="cuda"), {"cuda": {"error": "x"}}, None, False),
    (Target("rate", 1, of="cuda"), {"cuda": {**_cell(0.1), "wrong": "zeros"}}, 6400, False),
    (Target("time", float("inf"), of="cuda"), {"cuda": _cell(0.1)}, 0.1, True),
    (Target("time", float("inf"), of="cuda"), {"cuda": {"error": "out of memory"}}, None, False),
    (Target("memory", 1.1, of="cuda"), {"cuda": _cell(0.1)}, 1, True),
    # Of the rounds' ratios 2, 2, 4 the median; that of the medians would be 3.
    (Target("speed", 2, "eager", "cuda"), {"cuda": _cell(1, 2, 1.5), "eager": _cell(2, 4, 6)}, 2, True),
    (Target("speed", 2, "eager", "cuda"), {"cuda": _cell(1)}, None, None),
])  # fmt: skip
def test_targets(target, cells, measured, met):
    row = replace(TINY, targets=(target,))
    ((_, found, verdict),) = judge(row, _entry(**cells))
    assert verdict is met and (found and found["measured"]) == (measured and pytest.approx(measured))
    assert judge(row, _entry(["differ"], **cells))[0][2] is False


def test_status_fails_on_what_is_wrong_and_on_nothing_measured():
    good = _entry(torch=_cell(0.1), eager={"error": "out of memory"})
    assert command.status([good], ["rows"]) == 0 and command.status([], ["tests"]) == 0
    cell = good["cells"]["torch"]
    bad = [[], [_entry(["differ"], torch=cell)], [_entry(torch={**cell, "wrong": "zeros"})],
           [{**good, "busy": "turns"}], [good, _entry(cuda={"error": "x"})],
           [good, {"group": "sanitizer", "step": "memcheck", "ok": False}]]  # fmt: skip
    assert [command.status(entries, ["rows"]) for entries in bad] == [1] * len(bad)


def test_the_table_compares_the_backends_and_stays_short():
    row = ROWS[0]
    entry = {**_entry(cuda=_cell(1.0, 2.0), triton=_cell(2.0, 4.0), eager=_cell(8.0, 16.0)), "step": step_of(row)}
    many = [{**entry, "step": step_of(other), "wrong": ["x" * 300]} for other in ROWS]
    line = next(line for line in text([entry]).splitlines() if line.startswith("cplearn_loss H"))
    assert line.split() == ["cplearn_loss", "H", "256", "2048", "1048576", *"2 4 2.00 2.68e+08 1.0 MB 8.0x".split()]
    printed = text(many)
    assert len(printed) < 10_000 and "more rows in the record" in printed and "more in the record" in printed
    assert all(str(target) in printed for other in ROWS for target in other.targets)


def test_a_torn_line_of_the_record_costs_itself(tmp_path):
    path = tmp_path / record.FILE
    record.append(path, {"group": "rows", "step": "a", "busy": "x"})
    path.write_text(path.read_text() + '{"group": "rows", "ste')
    record.append(path, {"group": "rows", "step": "a", "busy": None})
    assert record.read(path) == [{"group": "rows", "step": "a", "busy": None}]


# ---- measuring ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", ["loss_graph", "expected_code"])
def test_the_check_sees_wrong_answers(function, monkeypatch):
    row = Case(5, 8, 64, function=function)
    assert measure.check("torch", row, CPU)[1] == ""
    name = "cplearn_loss" if function == "loss_graph" else function
    right = getattr(cpk, name)

    def wrong(*arguments, backend, **options):
        return right(*arguments, backend=backend, **options) * (1.0 if backend == "reference" else 1.001)

    monkeypatch.setattr(cpk, name, wrong)
    assert "gradient is off" in measure.check("torch", row, CPU)[1]


@pytest.mark.parametrize("fails", [True, False])
def test_a_column_that_fails_or_differs_at_full_size_is_told(fails, tmp_path, monkeypatch):
    def formula(h1, h2, *_):
        if fails:
            raise torch.OutOfMemoryError("so many bytes\nare not there")
        return (h1 * h2).sum()

    monkeypatch.setattr("bench.implementations.authors_loss", formula)
    options = {"record": str(tmp_path / record.FILE), "backends": ["torch"], "rounds": 2, "dry_run": True}
    measure.measure(TINY, options, CPU)
    entry = entries_of(tmp_path)[step_of(TINY)]
    if fails:
        assert entry["cells"]["eager"] == {"error": "OutOfMemoryError: so many bytes"} and not entry["wrong"]
        assert len(entry["cells"]["torch"]["seconds"]) == 2 and entry["busy"] is None
    else:
        assert "losses at full size differ" in entry["wrong"][0]
