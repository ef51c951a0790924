"""Tests of the GPU benchmark that need no GPU: dry run, time limit, crashes, bars, table, exit status."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # bench/ is used from the checkout and never installed

import cplearn_kernels as cpk  # noqa: E402
from bench import gpu, gpu_columns, gpu_machine, gpu_tests, gpu_timing, gpu_worker  # noqa: E402
from bench.gpu_backends import by_dictionary, preferred, verdicts  # noqa: E402
from bench.gpu_bars import bound_for, judge  # noqa: E402
from bench.gpu_record import FILE, PROGRESS_FILE, Record, write_json  # noqa: E402
from bench.gpu_rows import BARS, COLUMNS, LIBRARY, ROWS, TASKS, GpuBar, GpuRow, plan  # noqa: E402
from bench.gpu_table import MOST_CHARACTERS, text  # noqa: E402

pytestmark = pytest.mark.usefixtures("alone")  # time limits of a few seconds, processes that take as long to start

CUDA, TRITON, TORCH = (LIBRARY + name for name in ("cuda", "triton", "torch"))
ROW = GpuRow("loss", "hadamard", 5, 8, 64, ("authors_float32", "cut_cross_entropy"))


# ---- rows and bars ------------------------------------------------------------------------------------------------


def test_rows_and_bars_name_what_exists():
    for dry_run in (False, True):
        rows, bars = plan(dry_run)
        assert {bar.row for bar in bars} <= {row.name for row in rows}
        for bar in bars:
            assert not bar.against or any(bar.against in row.columns for row in rows if row.name == bar.row)
            assert bar.backend in ({""} if dry_run else {"cuda", "triton"})  # a dry run has neither
    assert len({row.name for row in ROWS}) == len({row.shrunk().name for row in ROWS})
    for row in ROWS:
        assert row.task in TASKS and set(row.columns) <= set(COLUMNS)
    sizes = {(row.n, row.num_features, row.num_codes) for row in ROWS if row.task == "loss"}
    assert {(n, f, 1 << c) for n in (64, 256, 1024) for f in (128, 384, 2048) for c in (14, 17, 20, 22, 24)} <= sizes


def _cell(seconds, logits=1000, **more):
    return {
        "seconds": [seconds],
        "median": seconds,
        "min": seconds,
        "max": seconds,
        "peak_bytes": 10**6,
        "weight_bytes": 0,
        "logits_per_second": logits / seconds,
        **more,
    }


def _record(cells, wrong=(), task="loss", **machine):
    row = {
        "name": "r",
        "task": task,
        "dictionary": "rademacher",
        "n": 5,
        "num_features": 100,
        "num_codes": 100,
        "logits": 1000,
        "columns": list(cells),
        "agreement": {},
        "wrong": list(wrong),
        "cells": cells,
    }
    return {"machine": machine, "settings": {}, "tests": None, "rows": [row], "bars": []}


AUTHORS = _cell(0.5, ratios={TORCH: {"median": 5.0}}, weight_bytes=10**8)
BESIDE_BOTH = _cell(0.5, ratios={CUDA: {"median": 5.0}, TRITON: {"median": 2.5}}, weight_bytes=10**8)
TENSOR = {"matmul": {"bf16": 1e7}}  # 1e4 logits/s at 800 operations each: 80 %


@pytest.mark.parametrize(
    "bar, cells, measured, met",
    [
        (GpuBar("rate", "r", 1e4), {TORCH: _cell(0.1)}, 1e4, True),
        (GpuBar("rate", "r", 1.01e4), {TORCH: _cell(0.1)}, 1e4, False),
        (GpuBar("rate", "r", 1e4), {TORCH: _cell(9.0), "library:triton": _cell(0.1)}, 1e4, True),
        (GpuBar("rate", "r", 1e4), {TORCH: {"skipped": "time"}}, None, None),
        (GpuBar("rate", "absent", 1e4), {TORCH: _cell(0.1)}, None, None),
        (GpuBar("speedup", "r", 5.0, "authors_float32"), {TORCH: _cell(0.1), "authors_float32": AUTHORS}, 5.0, True),
        (GpuBar("speedup", "r", 5.1, "authors_float32"), {TORCH: _cell(0.1), "authors_float32": AUTHORS}, 5.0, False),
        (
            GpuBar("speedup", "r", 5.0, "authors_float32"),
            {TORCH: _cell(0.1), "authors_float32": {"error": "x"}},
            None,
            None,
        ),
        (GpuBar("tensor", "r", 0.8), {TORCH: _cell(0.1)}, 80.0, True),
        (GpuBar("tensor", "r", 0.81), {TORCH: _cell(0.1)}, 80.0, False),
        (GpuBar("memory", "r", 0.01, "authors_float32"), {TORCH: _cell(0.1), "authors_float32": AUTHORS}, 0.990, True),
        (
            GpuBar("memory", "r", 0.0099, "authors_float32"),
            {TORCH: _cell(0.1), "authors_float32": AUTHORS},
            0.990,
            False,
        ),
        (
            GpuBar("memory", "r", 0.01, "authors_float32"),
            {TORCH: _cell(0.1), "authors_float32": {"skipped": "x", "estimated_bytes": 10**8, "weight_bytes": 0}},
            1.0,
            False,
        ),
        (GpuBar("peak", "r", 1.1e6), {TORCH: _cell(0.1)}, 1e6, True),
        (GpuBar("peak", "r", 0.9e6), {TORCH: _cell(0.1)}, 1e6, False),
        (GpuBar("peak", "r", 1e7), {TORCH: {**_cell(0.1), "peak_bytes": None}}, None, None),
        (GpuBar("time", "r", 0.11), {TORCH: _cell(0.1)}, 0.1, True),
        (GpuBar("time", "r", 0.09), {TORCH: _cell(0.1)}, 0.1, False),
        # A bar that belongs to a backend looks at no other.
        (GpuBar("rate", "r", 2e3, backend="triton"), {CUDA: _cell(0.1), TRITON: _cell(0.4)}, 2.5e3, True),
        (GpuBar("rate", "r", 5e3, backend="triton"), {CUDA: _cell(0.1), TRITON: _cell(0.4)}, 2.5e3, False),
        (GpuBar("rate", "r", 1.0, backend="cuda"), {CUDA: {"skipped": "time"}, TRITON: _cell(0.4)}, None, None),
        (
            GpuBar("speedup", "r", 5.0, "authors_float32", backend="cuda"),
            {CUDA: _cell(0.1), TRITON: _cell(0.2), "authors_float32": BESIDE_BOTH},
            5.0,
            True,
        ),
        (
            GpuBar("speedup", "r", 5.0, "authors_float32", backend="triton"),
            {CUDA: _cell(0.1), TRITON: _cell(0.2), "authors_float32": BESIDE_BOTH},
            2.5,
            False,
        ),
        (GpuBar("runs", "r"), {TORCH: _cell(0.1)}, 0.1, True),
        (GpuBar("runs", "r", backend="cuda"), {CUDA: {"error": "x"}, TRITON: _cell(0.1)}, None, False),
        (GpuBar("runs", "r"), {TORCH: {"error": "OutOfMemoryError: x"}}, None, False),
    ],
)
def test_bars(bar, cells, measured, met):
    (verdict,) = judge([bar], _record(cells, **TENSOR))
    assert verdict["met"] is met
    assert verdict["measured"] == (None if measured is None else pytest.approx(measured, rel=1e-3))


def test_a_wrong_row_meets_no_bar_and_fails_the_command():
    record = _record({TORCH: _cell(0.1)}, wrong=["library:torch: zeros"])
    (verdict,) = judge([GpuBar("rate", "r", 1.0)], record)
    assert verdict["met"] is False and verdict["note"] == "the row is wrong"
    assert gpu.status(record) == 1 and "WRONG r: library:torch: zeros" in text(record)
    assert gpu.status(_record({TORCH: _cell(0.1)})) == 0
    assert gpu.status(_record({TORCH: {"error": "x"}, "authors_float32": AUTHORS})) == 1  # the library did not run
    assert gpu.status({**_record({TORCH: _cell(0.1)}), "tests": {"ok": False}}) == 1


def test_a_wrong_backend_costs_the_other_no_bar_and_a_goal_is_judged_apart():
    record = _record({CUDA: _cell(0.1), TRITON: _cell(0.1)}, wrong=[f"{TRITON}: zeros"])
    cuda, triton = (GpuBar("rate", "r", 5e3, goal=1e4, backend=name) for name in ("cuda", "triton"))
    verdicts_ = judge([cuda, triton, replace(cuda, goal=2e4), replace(cuda, goal=0.0)], record)
    assert [entry["met"] for entry in verdicts_] == [True, False, True, True]
    assert [entry["goal_met"] for entry in verdicts_] == [True, False, False, None]
    lines = text({**record, "bars": verdicts_}).split("\nbars ")[1].splitlines()
    assert "yes, goal" in lines[3] and lines[3].startswith("cuda") and "(goal 1e+04)" in lines[3]
    assert " NO " in lines[4] and "goal" not in lines[5].split("yes")[1]


def _two_backends(*sizes):
    """A record with a row for each (dictionary, f, seconds of cuda in each round, seconds of triton)."""
    record = _record({})
    record["machine"] = {"architecture": "sm_90"}
    record["rows"] = []
    for number, (dictionary, f, *times) in enumerate(sizes):
        cells = {column: {**_cell(sorted(seconds)[len(seconds) // 2]), "seconds": seconds}
                 for column, seconds in zip((CUDA, TRITON), times)}  # fmt: skip
        (row,) = _record(cells)["rows"]
        record["rows"].append({**row, "name": f"r{number}", "dictionary": dictionary, "num_features": f})
    return record


def test_the_table_shows_both_backends_and_who_is_faster_on_which_dictionary():
    # In every round of the first row cuda is twice as fast; the ratio of the medians would be 3.
    record = _two_backends(("hadamard", 128, [1.0, 2.0, 3.0], [2.0, 6.0, 6.0]), ("hadamard", 128, [1.0], [8.0]),
                           ("rademacher", 128, [3.0], [1.0]), ("dense", 128, [1.0], [1.01]))  # fmt: skip
    record["rows"][0]["cells"][TRITON]["seconds"][1] = 4.0
    assert by_dictionary(record["rows"])["hadamard"] == {128: [2.0, 8.0]}
    printed = text(record)
    (line,) = [line for line in printed.splitlines() if line.startswith("loss H") and " 8 s " in line]
    assert line.split()[5:] == ["1", "s", "8", "s", "1.00e+03", "1.25e+02", "1.0", "MB", "1.0", "MB", "8.00"]
    heading = "call W n f c cuda triton cuda l/s triton l/s cuda peak triton peak cuda/triton"
    assert heading in " ".join(printed.split())
    first, second, third, last = verdicts(record)
    assert first.startswith("hadamard: cuda is faster, 4.00x") and "cuda in 2 of 2 rows" in first
    assert second.startswith("rademacher: triton is faster, 3.00x") and "0.33 at f = 128" in second
    assert last.endswith('{"sm_90": {"hadamard": [128, 128]}}')
    assert all(part in printed for part in (first, second, third, last))
    # What is wrong is not fast; and with one backend there is nothing to compare.
    record["rows"][1]["wrong"] = [f"{CUDA}: zeros"]
    assert by_dictionary(record["rows"])["hadamard"] == {128: [2.0]}
    for row in record["rows"]:
        del row["cells"][TRITON]
        row["columns"].remove(TRITON)
    assert verdicts(record) == [] and "beside each other" not in text(record)


@pytest.mark.parametrize("ratios, expected", [
    ({128: 2.0, 384: 1.5, 2048: 1.2}, [128, 2048]), ({128: 0.9, 384: 1.5, 2048: 1.2}, [384, 2048]),
    ({128: 1.2, 384: 0.5, 2048: 1.5}, [128, 128]), ({128: 1.01, 384: 0.5}, None),
])  # fmt: skip
def test_the_preferred_range_holds_no_size_at_which_triton_is_faster(ratios, expected):
    assert preferred({f: [ratio / 2, ratio * 2] for f, ratio in ratios.items()}) == expected


def test_the_bound_comes_from_a_module_that_may_be_missing_or_fail(monkeypatch):
    row = _record({})["rows"][0]
    module = type(sys)("bench.gpu_bounds")
    monkeypatch.setitem(sys.modules, "bench.gpu_bounds", None)  # what `import` takes for a missing module
    assert bound_for("sm_90", row) is None
    monkeypatch.setitem(sys.modules, "bench.gpu_bounds", module)
    assert bound_for("sm_90", row) is None
    module.bound = lambda *arguments: {"logits_per_second": 1.0, "tensor_flops": 1600, "given": arguments}
    assert bound_for("sm_90", row)["given"] == ("sm_90", "rademacher", 5, 100, 100)
    assert bound_for("sm_90", {**row, "task": "assign"}) is None
    # The cuda backend has a bound of its own, torch has none.
    own = bound_for("sm_90", row, "cuda")
    assert own["logits_per_second"] > 1e6 and "given" not in own and bound_for("sm_90", row, "torch") is None
    (verdict,) = judge([GpuBar("tensor", "r", 0.5)], _record({TORCH: _cell(0.1)}, **TENSOR))
    assert verdict["measured"] == pytest.approx(160.0)


# ---- time ---------------------------------------------------------------------------------------------------------


class Clock:
    """A clock and timer that only its own calls move."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def seconds(self, call, count=1):
        self.now += count * call()
        return call()


def test_turns_alternate_end_before_the_deadline_and_survive_an_error():
    clock = Clock()
    order = []

    def call(name, seconds):
        return lambda: order.append(name) or seconds

    def failing():
        raise RuntimeError("no\nmore")

    deadline = gpu_timing.Deadline(100.0, clock)
    calls = {"a": call("a", 2.0), "b": call("b", 3.0), "c": failing}
    took = {"a": 2.0, "b": 3.0, "c": 0.0001}
    seconds, errors = gpu_timing.alternate(calls, took, clock, deadline, rounds=3, turn_seconds=0.0)
    assert seconds == {"a": [2.0] * 3, "b": [3.0] * 3} and errors == {"c": "RuntimeError: no"}
    assert order[::2] == ["a", "b", "b", "a", "a", "b"]
    deadline = gpu_timing.Deadline(11.0, clock)
    del calls["c"]
    assert gpu_timing.alternate(calls, took, clock, deadline, rounds=9, turn_seconds=0.0)[0]["a"] == [2.0, 2.0]
    assert deadline.remaining() == 1.0 and not deadline.fits(1.0)


def test_a_backend_that_is_there_and_cannot_serve_the_gpu_is_refused(monkeypatch):
    known = cpk.backends()
    for name in ("cuda", "triton"):
        known[name] = replace(known["torch"], name=name)  # as on a machine where it was built and loads
    monkeypatch.setattr(cpk, "backends", lambda: known)

    def unsupported(device):
        return "it needs compute capability 8.0" if device.type == "cuda" else None

    monkeypatch.setattr(gpu_machine._ON_GPU["cuda"], "unsupported_device", unsupported)
    monkeypatch.setattr(gpu_machine._ON_GPU["triton"], "unsupported_device", lambda device: None)
    usable, refused = gpu_machine.usable_backends(None, dry_run=False)
    assert list(usable) == ["triton", "torch"] and refused == {"cuda": "it needs compute capability 8.0"}
    assert gpu_machine.usable_backends(["nonsense"], dry_run=False)[1] == {"nonsense": "no such backend"}
    assert list(gpu_machine.usable_backends(["cuda"], dry_run=True)[0]) == ["cuda"]


# ---- what is built ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_the_check_sees_wrong_answers(task, monkeypatch):
    row = GpuRow(task, "hadamard", 5, 8, 64)
    assert gpu_columns.check(TORCH, row, torch.device("cpu"))["agrees"]
    name = {"loss": "cplearn_loss", "loss_graph": "cplearn_loss", "logsumexp": "projector_logsumexp"}.get(task, task)
    right = getattr(cpk, name)

    def wrong(*arguments, backend, **options):
        results = right(*arguments, backend=backend, **options)
        factor = 1.0 if backend == "reference" else 1.001
        return tuple(part * factor for part in results) if task == "assign" else results * factor

    monkeypatch.setattr(cpk, name, wrong)
    assert not gpu_columns.check(TORCH, row, torch.device("cpu"))["agrees"]


def test_the_dense_weight_is_the_dictionary(monkeypatch):
    monkeypatch.setattr(gpu_columns, "_SLICE", 1)  # many slices
    problem = gpu_columns.Problem(GpuRow("logsumexp", "rademacher", 5, 8, 61), torch.device("cpu"))
    weights, expected = gpu_columns.DenseWeights(), problem.dictionary.to_dense()
    weights.turn_to(problem)
    assert weights.missing_bytes("liger", problem) == 2 * 8 * 61
    assert weights.get("authors_float32", problem).equal(expected)
    assert weights.get("liger", problem).float().equal(expected.T)
    assert weights.missing_bytes("liger", problem) == 0


def _worker(tmp_path, monkeypatch, row=ROW, seconds=60.0):
    monkeypatch.setattr(gpu_worker, "plan", lambda dry_run: ((row,), ()))
    options = {"dry_run": True, "backends": None, "rounds": 2, "commit": None, "until": time.time() + seconds}
    gpu_worker.Worker(tmp_path, options).run()
    return json.loads((tmp_path / FILE).read_text())["rows"][0]


def test_a_failing_cell_keeps_its_message_and_the_others_go_on(tmp_path, monkeypatch):
    def fails(*arguments):
        raise torch.OutOfMemoryError("so many bytes\nare not there")

    monkeypatch.setattr(gpu_columns, "authors_loss", fails)
    cells = _worker(tmp_path, monkeypatch)["cells"]
    assert cells["authors_float32"] == {"error": "OutOfMemoryError: so many bytes"}
    assert cells["cut_cross_entropy"] == {"skipped": "not installed"}
    assert len(cells[TORCH]["seconds"]) == 2 and cells[TORCH]["logits_per_second"] > 0


def test_a_formula_that_does_not_fit_is_not_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_machine, "free_bytes", lambda device: 1000)
    cell = _worker(tmp_path, monkeypatch)["cells"]["authors_float32"]
    assert cell["skipped"].startswith("does not fit: ") and cell["estimated_bytes"] == int(4 * 12.1 * 5 * 64)


def test_a_wrong_loss_at_full_size_is_found(tmp_path, monkeypatch):
    """Of the check's size and below, the check finds it first; here the formula is the one that differs."""
    monkeypatch.setattr(gpu_columns, "authors_loss", lambda h1, h2, *_: (h1 * h2).sum())
    (sentence,) = _worker(tmp_path, monkeypatch)["wrong"]
    assert "authors' formula at full size" in sentence


def test_no_time_no_rows(tmp_path, monkeypatch):
    assert _worker(tmp_path, monkeypatch, seconds=-1.0)["cells"] == {}


# ---- crashes and hangs --------------------------------------------------------------------------------------------

FAKE_WORKER = """
import json, os, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from bench.gpu_record import Record, PROGRESS_FILE, write_json
from bench.gpu_rows import GpuRow
folder = Path(sys.argv[1])
record = Record(folder)
row = GpuRow("loss", "hadamard", 5, 8, 64)
record.declare(row, ["crashes", "hangs", "runs", "late"])
record.save()
cells = record.row(row.name)["cells"]
for column in ("crashes", "hangs", "runs", "late"):
    if column in cells:
        continue
    busy = {{"row": row.name, "columns": [column], "what": "call", "limit": 0.5, "began": time.time()}}
    write_json(folder / PROGRESS_FILE, busy)
    if column == "crashes":
        os.abort()
    if column == "hangs":
        time.sleep(60)
    if column == "late":
        write_json(folder / PROGRESS_FILE, {{**busy, "limit": 60}})
        time.sleep(60)
    cells[column] = {{"median": 1.0}}
    record.save()
"""


def test_a_crash_and_a_hang_cost_a_cell_each_and_the_deadline_ends_it_all(tmp_path, monkeypatch):
    fake = tmp_path / "fake.py"
    fake.write_text(FAKE_WORKER.format(root=str(ROOT)))
    monkeypatch.setattr(gpu, "WORKER", (str(fake),))
    began = time.monotonic()
    reason = gpu.measure(tmp_path, {}, began + 2.5)
    assert reason == "time" and time.monotonic() - began < 5.0
    cells = gpu.finish(tmp_path, [], reason)["rows"][0]["cells"]
    assert cells["crashes"] == {"error": "call: ended with status -6"}
    assert cells["hangs"] == {"error": "call: ended after 0.5 s"}
    assert cells["runs"] == {"median": 1.0} and cells["late"] == {"skipped": "time"}
    assert not (tmp_path / PROGRESS_FILE).exists()


def test_a_worker_that_never_starts_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "WORKER", ("-c", "import sys; sys.exit('no such device')"))
    reason = gpu.measure(tmp_path, {}, time.monotonic() + 30.0)
    assert reason == "the measuring process ended with status 1: no such device"


def test_blame_falls_on_what_is_open_where_a_measured_column_crashed(tmp_path):
    record = Record(tmp_path)
    record.declare(ROW, [TORCH, "authors_float32"])
    record.row(ROW.name)["cells"][TORCH] = {"median": 1.0}
    record.blame(ROW.name, [TORCH], "died")
    assert record.row(ROW.name)["cells"] == {TORCH: {"median": 1.0}, "authors_float32": {"error": "died"}}


def test_files_are_replaced_in_one_step(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1} and [child.name for child in tmp_path.iterdir()] == ["a.json"]


# ---- the command ----------------------------------------------------------------------------------------------------


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and "no CUDA or ROCm GPU" in error and not (tmp_path / "out").exists()
    assert gpu.main([]) == 2 and "--out DIR" in capsys.readouterr().err


def _command(folder, *options):
    command = [sys.executable, "-m", "bench.gpu", "--out", str(folder), "--dry-run", "--rounds", "1", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_dry_run_writes_everything_and_prints_the_table_last(tmp_path, capsys):
    done = _command(tmp_path, "--skip-tests")
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / FILE).read_text())
    assert {row["name"] for row in record["rows"]} == {row.name for row in plan(True)[0]}
    allowed = {"not installed", f"not installed: torch {torch.__version__} has none"}
    for row in record["rows"]:
        assert not row["wrong"] and set(row["cells"]) == set(row["columns"]) and TORCH in row["columns"]
        for column, cell in row["cells"].items():
            assert "median" in cell or cell.get("skipped") in allowed, (row["name"], column, cell)
            assert column == TORCH or "skipped" in cell or cell["ratios"][TORCH]["median"] > 0
    assert len(record["bars"]) == len(BARS) and record["machine"]["matmul"]["bf16"] > 0
    assert done.stdout.strip() == text(record) and len(done.stdout) < MOST_CHARACTERS + 2
    assert "DRY RUN" in done.stdout and done.stdout.index("\nbars (") > done.stdout.index("other calls")
    assert not (tmp_path / PROGRESS_FILE).exists()
    assert gpu.main(["--show", str(tmp_path / FILE)]) == 0 and capsys.readouterr().out == done.stdout
    # A second backend and longer texts must not push the bars out.
    for row in record["rows"]:
        row["cells"]["library:triton"] = row["cells"][TORCH]
        row["columns"].append("library:triton")
        row["wrong"] = ["library:triton: " + "x" * 300]
    printed = text(record, most=9000)
    assert len(printed) <= 9000 and "more rows in the JSON" in printed
    assert all(bar["text"] in printed for bar in record["bars"]) and printed.startswith(record["machine"]["cpu"])


def test_the_time_given_is_kept(tmp_path):
    """7.2 s, of which 4 are held back; so many rounds would take minutes."""
    began = time.monotonic()
    done = _command(tmp_path, "--minutes", "0.12", "--rounds", "2000", "--skip-tests")
    assert time.monotonic() - began < 9, done.stderr
    record = json.loads((tmp_path / FILE).read_text())
    assert all(set(row["cells"]) == set(row["columns"]) for row in record["rows"])
    # A machine so busy that torch's import takes 3 s has not come to the rows.
    assert record["rows"] == [] or record["rows"][-1]["cells"][TORCH] == {"skipped": "time"}
    assert all(bar["row"] in done.stdout for bar in record["bars"])


def test_the_command_runs_the_tests_first_and_survives_an_interruption(tmp_path, monkeypatch, capsys):
    (tmp_path / "test_some.py").write_text("def test_a(): assert 0\n")
    files = {"cuda": (str(tmp_path / "test_some.py"), "tests/test_that_does_not_exist.py")}
    monkeypatch.setattr(gpu_tests, "TEST_FILES", files)

    def interrupted(folder, options, deadline):
        record = Record(folder)
        record.declare(ROW, [TORCH, "liger"])
        record.row(ROW.name)["cells"][TORCH] = _cell(0.1)
        record.save()
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu, "measure", interrupted)
    assert gpu.main(["--out", str(tmp_path / "out"), "--dry-run"]) == 1
    assert "1 failed" in capsys.readouterr().out
    (outcome,) = json.loads((tmp_path / "out" / "tests.json").read_text())["files"]
    assert outcome["failed"] == 1 and any("assert 0" in line for line in outcome["tail"])
    record = json.loads((tmp_path / "out" / FILE).read_text())
    assert record["tests"]["failed"] == 1 and record["tests"]["files"][0]["file"] == outcome["file"]
    cells = record["rows"][0]["cells"]
    assert cells["liger"] == {"skipped": "interrupted"} and "median" in cells[TORCH]
