"""`pytest bench/ --benchmark` from the option to the file, and from the file to tables and plot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pytest_benchmark", reason="needs the extra [bench]")
pytest.importorskip("matplotlib", reason="needs the extra [bench]")

from bench import plot, results, table
from bench.cases import CASES, FUNCTION_CASES, LIBRARY, Case
from bench.results import load
from bench.targets import judged
from train.machine import describe

ROOT = Path(__file__).resolve().parents[2]
TINY = "hadamard-n64-f128-c1024"
FEW = ("--benchmark", "--benchmark-min-rounds=2", "--benchmark-max-time=0.02")


# ---- the file ----------------------------------------------------------------------------------------------------


def _entry(case: Case, implementation: str, seconds: float, **extra) -> dict:
    info = {"case": case.name, "function": case.function, "dictionary": case.dictionary, "n": case.n,
            "num_features": case.num_features, "num_codes": case.num_codes, "logits": case.logits,
            "implementation": implementation, **extra}  # fmt: skip
    return {"group": case.name, "stats": {"median": seconds}, "extra_info": info}


@pytest.fixture
def written(tmp_path) -> Path:
    """A record with two cases, a function, and targets met and missed."""
    small, large = Case(64, 128, 1 << 14), Case(64, 128, 1 << 16)
    ratio = {"median": 12.0, "min": 11.0, "max": 13.0}
    memory = {"growth_bytes": 80_000_000, "codes_bytes": 8_000_000}
    missed = judged("at least 25x as fast as eager", 25.0, 12.0, "x", [11.0, 13.0], met=False)
    entries = [
        _entry(small, LIBRARY, 0.01, memory={"growth_bytes": 0, "codes_bytes": 0}, targets=[missed]),
        _entry(small, "eager", 0.13, ratio=ratio, memory=memory),
        _entry(large, LIBRARY, 0.05, memory={"growth_bytes": 4_000_000, "codes_bytes": 0}),
        _entry(Case(64, 128, 1 << 16, function="assign"), LIBRARY, 0.002),
        # The entry of the time per code is no case of its own.
        _entry(large, LIBRARY, 0.07, targets=[{**missed, "text": "flat", "met": True}]) | {"group": "time_per_code"},
    ]
    path = tmp_path / "x.json"
    machine = describe(2) | {"cpu": "Some(R) CPU", "commit": None}
    path.write_text(json.dumps({"datetime": "2026-01-01", "machine": machine, "benchmarks": entries}))
    return path


def test_tables_show_times_ratios_memory_and_targets(written, capsys):
    assert table.main([str(written)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "| hadamard | 64 | 128 | 16384 | 10 ms | 130 ms, 12.0x (11.0..13.0) |" in lines
    assert "| hadamard | 64 | 128 | 65536 | 50 ms | - |" in lines
    assert "| hadamard | 64 | 128 | 16384 | 0.0 MB | 80 MB + 8.0 MB |" in lines
    assert "| assign | hadamard | 64 | 128 | 65536 | 2 ms |" in lines
    assert "| hadamard-n64-f128-c16384 | at least 25x as fast as eager | 12x (11x..13x) | NO |" in lines
    assert any(line.startswith("| time_per_code | flat |") and line.endswith("| yes |") for line in lines)
    assert any("Some(R) CPU" in line and "no commit" in line for line in lines)


def test_plot_takes_one_n_and_adds_the_codes_held(written, capsys):
    times, held = plot.series(load(written)["benchmarks"], 64)
    assert times[LIBRARY, 128] == [(1 << 14, 0.01), (1 << 16, 0.05)]
    assert held["eager", 128] == [(1 << 14, 88.0)] and held[LIBRARY, 128][1] == (1 << 16, 4.0)
    assert plot.main([str(written)]) == 0
    image = written.with_suffix(".png").read_bytes()
    assert image.startswith(b"\x89PNG") and len(image) > 10_000
    assert plot.main([str(written), "--n", "65"]) == 1
    assert "no measured case with n = 65; the record has n = 64" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"benchmarks": [{"extra_info": {}}]}'])
def test_other_files_are_refused(content, tmp_path, capsys):
    (tmp_path / "x.json").write_text(content)
    assert table.main([str(tmp_path / "x.json")]) == 1
    assert table.main([str(tmp_path / "absent.json")]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert "x.json" in first and "No such file" in second


def test_without_a_path_the_latest_record_is_read(written, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    with pytest.raises(results.ResultsError, match="name a file"):
        results.latest()
    record = load(written)
    for day, name in ((10, "pytest-a.json"), (12, "pytest-b.json"), (11, "pytest-c.json")):
        (tmp_path / name).write_text(json.dumps({**record, "datetime": f"2026-01-{day}"}))
    assert results.latest().name == "pytest-b.json"


# ---- the command -------------------------------------------------------------------------------------------------


def _pytest_bench(*options):
    # pytest-benchmark does not measure within a process of pytest-xdist, which these tests may run in.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "bench/", "-p", "no:cacheprovider", "--threads", "1", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False, env=environment)


@pytest.mark.slow
def test_a_measured_case_is_written_with_its_ratio_and_target(tmp_path):
    path = tmp_path / "x.json"
    done = _pytest_bench(*FEW, f"--benchmark-json={path}", "-k", f"{TINY} and (library or tidy)")
    text = done.stdout + done.stderr
    record = load(path)
    entries = {entry["extra_info"]["implementation"]: entry for entry in record["benchmarks"]}
    assert set(entries) == {LIBRARY, "tidy"}, text
    ours, tidy = entries[LIBRARY], entries["tidy"]
    assert ours["group"] == tidy["group"] == TINY and ours["options"]["timer"] == "seconds_of_the_turns"
    for entry in (ours, tidy):
        assert entry["stats"]["rounds"] == 2 and 1e-6 < entry["stats"]["min"] < 1
        # A turn, some calls, lasts about the hundredth of a second that was asked for.
        assert entry["stats"]["iterations"] * entry["stats"]["max"] > 2e-3
        assert entry["extra_info"]["errors"]["gradient"] < 1e-4 and entry["extra_info"]["memory"]["peak_bytes"] > 1e6
    rounds = [slow / fast for slow, fast in zip(tidy["stats"]["data"], ours["stats"]["data"], strict=True)]
    assert tidy["extra_info"]["ratio"]["min"] == pytest.approx(min(rounds))
    (verdict,) = ours["extra_info"]["targets"]
    assert verdict["met"] is (verdict["measured"] >= 1.0) and "at least 1x as fast as tidy" in text
    assert done.returncode == (pytest.ExitCode.OK if verdict["met"] else pytest.ExitCode.TESTS_FAILED), text
    assert "node" not in record["machine_info"] and record["machine"]["threads"] == 1


@pytest.mark.slow
def test_a_saved_run_is_compared_with(tmp_path):
    few = (*FEW, f"--benchmark-storage=file://{tmp_path}", "-k", f"{TINY} and library")
    for options in (("--benchmark-save=first",), ("--benchmark-only", "--benchmark-compare")):
        done = _pytest_bench(*few, *options)
        assert done.returncode == 0, done.stdout + done.stderr
    text = done.stdout + done.stderr
    assert "Comparing against benchmarks from" in text and "machine_info is different" not in text
    assert f"test_loss[{TINY}-library] (0001_first)" in text and f"test_loss[{TINY}-library] (NOW)" in text


@pytest.mark.slow
def test_our_options_live_beside_those_of_pytest_benchmark():
    """pytest's option `--benchmark` must not be taken for an abbreviation of pytest-benchmark's `--benchmark-...`."""
    counts = []
    for option in ("--benchmark", "--benchmark-full"):
        done = _pytest_bench("-q", "--collect-only", option)
        assert done.returncode == 0, done.stdout + done.stderr
        counts.append(done.stdout.count("::test_"))
    sizes = [len(case.implementations) for case in (*CASES, *FUNCTION_CASES)]
    slow = sum(len(case.implementations) for case in CASES if case.full_only)
    assert counts == [sum(sizes) - slow + 1, sum(sizes) + 1]


@pytest.mark.slow
def test_every_benchmark_is_checked_without_the_option():
    done = _pytest_bench()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "implementations beside each other" not in done.stdout


@pytest.mark.slow
def test_an_unknown_backend_stops_the_run_with_one_sentence():
    done = _pytest_bench("--backend", "nonsense")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--backend: expected None or one of" in done.stderr and "Traceback" not in done.stderr
