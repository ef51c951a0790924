"""Tests of the benchmark's own parts: formulas, timer, bars, JSON, tables, plot, memory probe, pytest options."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # bench/ is used from the checkout and never installed

import cplearn_kernels as cpk  # noqa: E402
from bench import memory, plot, results, table, timing  # noqa: E402
from bench.accuracy import FORMULA_LIMIT, LIBRARY_LIMIT, compare  # noqa: E402
from bench.targets import judge  # noqa: E402
from bench.implementations import Problem, build_loss, forward_backward  # noqa: E402
from bench.formulas import authors_loss, tidy_loss  # noqa: E402
from bench.cases import (  # noqa: E402
    ALL_COLUMNS,
    LIBRARY,
    LINEAR_BARS,
    MEMORY_BARS,
    ROWS,
    Bar,
    LinearBar,
    MemoryBar,
    RateBar,
    Row,
    row_named,
)
from train import machine  # noqa: E402

ROW = Row(5, 7, 33)


# ---- formulas ----------------------------------------------------------------------------------------------------


def _embeddings(n: int, f: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    h = torch.randn(2, n, f, generator=generator, dtype=torch.float64)
    return tuple(view.requires_grad_() for view in torch.nn.functional.normalize(h, dim=2))


def _loss_and_gradients(function, h1, h2):
    value = function(h1, h2)
    return value.detach(), *torch.autograd.grad(value, (h1, h2))


@pytest.mark.parametrize("formula", [authors_loss, tidy_loss])
@pytest.mark.parametrize("beta", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("n, f, c", [(1, 1, 3), (6, 7, 100), (33, 32, 257)])
def test_formulas_agree_with_the_oracle(formula, beta, n, f, c):
    """In float64 all three differ by rounding only: some thousand additions of numbers of order 10."""
    dictionary = cpk.HadamardDictionary(num_features=f, num_codes=c, seed=1)
    weight = dictionary.to_dense(dtype=torch.float64)
    h1, h2 = _embeddings(n, f)
    expected = _loss_and_gradients(
        lambda a, b: cpk.reference.cplearn_loss(a, b, dictionary, temperature=0.4, beta=beta), h1, h2)
    got = _loss_and_gradients(lambda a, b: formula(a, b, weight, 0.4, beta), h1, h2)
    for mine, theirs in zip(got, expected):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


class _CountSoftmax(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = {"_softmax": 0, "_log_softmax": 0}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.calls:
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("formula, softmax, log_softmax", [(authors_loss, 8, 0), (tidy_loss, 0, 2)])
def test_number_of_softmax_evaluations(formula, softmax, log_softmax):
    h1, h2 = _embeddings(3, 4)
    with _CountSoftmax() as counter:
        formula(h1, h2, torch.ones(4, 5, dtype=torch.float64), 1.0)
    assert counter.calls == {"_softmax": softmax, "_log_softmax": log_softmax}


def test_only_the_tidy_formula_survives_an_underflow():
    h = torch.tensor([[1.0, 0.0]])
    weight = torch.tensor([[1.0, -1.0], [1.0, 1.0]])
    assert authors_loss(h, h, weight, 1e-3).isnan()
    assert tidy_loss(h, h, weight, 1e-3).isfinite()


# ---- agreement ---------------------------------------------------------------------------------------------------


def test_agreement_sees_wrong_answers():
    problem = Problem(ROW)
    weight = problem.weight

    def gradients(function):
        return _loss_and_gradients(function, problem.h1, problem.h2)

    right = gradients(lambda a, b: tidy_loss(a, b, weight, problem.temperature))
    expected = tuple(part.double() for part in right)
    assert compare(right, expected, problem.temperature).within(LIBRARY_LIMIT)

    def check_fails(wrong):
        assert not compare(wrong, expected, problem.temperature).within(FORMULA_LIMIT)

    check_fails((right[0] * 1.001, *right[1:]))
    check_fails((right[0], right[2], right[1]))
    check_fails((right[0], torch.zeros_like(right[1]), right[2]))
    check_fails((right[0] * float("nan"), *right[1:]))


def test_every_eager_column_can_be_built_and_agrees():
    problem = Problem(ROW)
    values = [forward_backward(build_loss(column, problem, "reference"), problem)[0]
              for column in ALL_COLUMNS if column != "compiled"]
    torch.testing.assert_close(values, [values[0]] * 4, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="unknown column 'tdy'"):
        build_loss("tdy", problem, "reference")


# ---- timer -------------------------------------------------------------------------------------------------------


class FakeClock:
    """A clock that only the fake calls move."""

    def __init__(self):
        self.now = 0.0
        self.log = []

    def __call__(self):
        return self.now

    def call(self, name, durations):
        source = iter(durations)

        def run():
            self.now += next(source)
            self.log.append(name)

        return run


def test_alternating_timer_on_a_fake_clock():
    """Warm-up times are not reported, turns alternate in direction, short calls are repeated within a turn."""
    clock = FakeClock()
    calls = {
        "slow": clock.call("slow", [50.0, 2.0, 2.0, 3.0, 4.0]),
        "fast": clock.call("fast", itertools.chain([9.0], itertools.repeat(0.25))),
    }
    seconds = timing.alternate(calls, 3, turn_seconds=0.5, clock=clock)
    assert seconds == {"slow": [2.0, 3.0, 4.0], "fast": [0.25, 0.25, 0.25]}
    warm_up, turns = clock.log[:4], clock.log[4:]
    assert warm_up == ["slow", "slow", "fast", "fast"]
    assert turns == ["slow", "fast", "fast", "fast", "fast", "slow", "slow", "fast", "fast"]
    assert timing.spread(seconds["slow"])["median"] == 3.0
    assert timing.ratios(seconds["slow"], seconds["fast"]) == [8.0, 12.0, 16.0]


def test_ratios_cancel_what_slows_both_columns():
    disturbance = [1.0, 5.0, 1.5, 1.0, 2.0]
    slow, fast = [12 * d for d in disturbance], [3 * d for d in disturbance]
    assert timing.spread(timing.ratios(slow, fast)) == {"median": 4, "q1": 4, "q3": 4, "min": 4, "max": 4}
    with pytest.raises(ValueError, match="2 rounds against 1"):
        timing.ratios([1.0, 2.0], [1.0])


def test_spread():
    assert timing.spread([5.0, 1.0, 4.0, 2.0, 3.0]) == {"median": 3.0, "q1": 2.0, "q3": 4.0, "min": 1.0, "max": 5.0}
    assert timing.spread([2.5]) == dict.fromkeys(["median", "q1", "q3", "min", "max"], 2.5)


def test_timer_refuses_no_rounds():
    with pytest.raises(ValueError, match="rounds = 0"):
        timing.alternate({"a": lambda: None}, 0)


# ---- rows, bars, record ------------------------------------------------------------------------------------------


def test_rows_are_distinct_and_their_bars_can_be_judged():
    assert len({row.name for row in ROWS}) == len({row.shrunk().name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert row.columns[0] == LIBRARY and set(row.columns) <= set(ALL_COLUMNS)
        assert {bar.against for bar in row.bars if isinstance(bar, Bar)} <= set(row.columns) - {LIBRARY}
        assert row_named(row.name) is row
    for bar in MEMORY_BARS:
        assert not row_named(bar.row).full_only and not row_named(bar.baseline or bar.row).full_only
    assert not any(row_named(name).full_only for bar in LINEAR_BARS for name in bar.rows)
    with pytest.raises(ValueError, match="unknown row 'hadamard'"):
        row_named("hadamard")


SMALL = Row(64, 128, 1 << 14, bars=(Bar("eager", 12.0), Bar("tidy", 3.0)))
LARGE = Row(64, 128, 1 << 16, columns=(LIBRARY,))
SOME_MACHINE = {"cpu": "Some(R) CPU @ 2.5GHz", "cpu_capability": "AVX2", "threads": 2, "torch": "2.x",
                "cplearn_kernels": "0.0", "commit": None, "date": "a day"}


def _collector():
    collector = results.Collector("cplearn_loss", SOME_MACHINE, {"backend": "cpu", "rounds": 3, "full": False})
    for what in ("forward_backward", "forward"):
        times = {LIBRARY: [0.01, 0.01, 0.02], "eager": [0.13, 0.12, 0.22], "tidy": [0.02, 0.02, 0.04]}
        collector.add_times(SMALL, what, times)
        collector.add_times(LARGE, what, {LIBRARY: [0.04, 0.05, 0.06]})
    for row, column, peak, growth, codes in (
        (SMALL, LIBRARY, 5_000_000, 0, 0),
        (SMALL, "eager", 90_000_000, 80_000_000, 8_000_000),
        (LARGE, LIBRARY, 9_000_000, 4_000_000, 0),
    ):
        collector.add_memory(row, column, {"before_bytes": peak - growth, "peak_bytes": peak, "growth_bytes": growth,
                                           "codes_bytes": codes})
    collector.add_agreement(SMALL, "eager", {"loss": 1e-8, "gradient": 1e-7})
    collector.add_error(SMALL, "compiled", "no compiler")
    return collector


def _record():
    return _collector().record()


def test_bars_are_judged_by_the_median_of_the_ratios():
    verdicts = judge(_record()["rows"], [SMALL], [MemoryBar(LARGE.name, SMALL.name, limit) for limit in (4.1, 4.0)], [])
    assert [round(verdict["measured"], 9) for verdict in verdicts] == [12.0, 2.0, 4.0, 4.0]
    assert [verdict["met"] for verdict in verdicts] == [True, False, True, False]
    assert verdicts[0]["spread"] == pytest.approx([11.0, 13.0])


@pytest.mark.parametrize("asked, met", [(2.0e8, True), (2.2e8, False)])
def test_a_rate_bar_counts_the_logits_of_both_views(asked, met):
    """2 * 64 * 16384 logits in 10 ms."""
    (verdict,) = judge(_record()["rows"], [replace(SMALL, bars=(RateBar(asked),))], [], [])
    assert verdict["measured"] == pytest.approx(2.097152e8) and verdict["met"] is met


@pytest.mark.parametrize("limit, met", [(4.1, True), (4.0, False)])
def test_a_memory_bar_without_a_baseline_takes_the_growth(limit, met):
    (verdict,) = judge(_record()["rows"], [], [MemoryBar(LARGE.name, None, limit)], [])
    assert verdict["measured"] == pytest.approx(4.0) and verdict["met"] is met


@pytest.mark.parametrize("within, met", [(0.26, True), (0.24, False)])
def test_a_linear_bar_compares_times_per_code_round_by_round(within, met):
    """10, 20, 30 ms for 2^14 codes beside 32, 64, 120 ms for 2^16: 25 %, 25 % and 0 % more per code."""
    collector = _collector()
    seconds = {SMALL.name: [0.01, 0.02, 0.03], LARGE.name: [0.032, 0.064, 0.12]}
    collector.add_linear([SMALL, LARGE], seconds)
    (verdict,) = judge(collector.record()["rows"], [], [], [LinearBar((SMALL.name, LARGE.name), within)])
    assert verdict["measured"] == pytest.approx(25.0) and verdict["met"] is met and verdict["row"] == SMALL.name


def test_a_bar_whose_rows_were_not_measured_is_not_judged():
    assert judge([], [SMALL], MEMORY_BARS, LINEAR_BARS) == []
    unmeasured = judge(
        _record()["rows"], [], [MemoryBar(LARGE.name, "absent", 1.0)], [LinearBar(("absent", LARGE.name), 1)]
    )
    assert unmeasured == []


def test_json_round_trip(tmp_path):
    record = _record()
    path = results.default_path(record, tmp_path / "new")
    assert path.name == "cplearn_loss-cpu-some-cpu-2-5ghz-2t.json"
    results.save(record, path)
    assert results.load(path) == record
    assert [child.name for child in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("change, message", [
    (lambda record: record.pop("machine"), "no 'machine'"),
    (lambda record: record.update(schema=99), "schema 99; this version reads schema 2"),
    (lambda record: record.update(rows={}), "'rows' is a dict; expected list"),
    (lambda record: record["rows"][0].pop("ratios"), r"rows\[0\]: no 'ratios'"),
    (lambda record: record["rows"][0]["columns"].update(mine={}), "column 'mine'"),
    (lambda record: record["rows"][0]["columns"]["eager"]["forward"].pop("q1"), "eager, forward: expected"),
])
def test_a_record_of_another_shape_is_refused(tmp_path, change, message):
    record = _record()
    change(record)
    path = tmp_path / "r.json"
    path.write_text(json.dumps(record))
    with pytest.raises(results.ResultsError, match=message):
        results.load(path)


def test_missing_and_broken_results(tmp_path, monkeypatch):
    with pytest.raises(results.ResultsError, match="no such file"):
        results.load(tmp_path / "absent.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(results.ResultsError, match="not a readable JSON file"):
        results.load(tmp_path / "broken.json")
    monkeypatch.setattr(results, "RESULTS", tmp_path / "empty")
    with pytest.raises(results.ResultsError, match="holds no results"):
        results.load()


def test_without_a_path_the_latest_record_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    for day, name in enumerate(("cplearn_loss-b.json", "cplearn_loss-c.json", "cplearn_loss-a.json")):
        record = _record()
        record["machine"]["date"] = f"2026-01-{day % 2 + 10} 10:00 UTC"  # c is the latest
        results.save(record, tmp_path / name)
    (tmp_path / "sign_products-d.json").write_text("{}")
    assert results.latest_result() == tmp_path / "cplearn_loss-c.json"
    assert results.load()["machine"]["date"] == "2026-01-11 10:00 UTC"


# ---- tables and plot ---------------------------------------------------------------------------------------------


def test_tables_show_times_ratios_bars_and_failures(tmp_path, capsys):
    record = _record()
    printed = table.text(record)
    assert "10 ms (10 ms..20 ms)" in printed  # the library's time
    assert "12.0x (11.0..13.0)" in printed  # the ratio and its spread
    assert "80 MB + 8.0 MB" in printed  # growth and dense codes of the formula
    assert "did not run: no compiler" in printed
    verdict = next(line for line in printed.splitlines() if line.startswith(SMALL.name) and "25x as fast" in line)
    assert verdict.endswith("12.0x (11.0x..13.0x)  NO")
    assert printed.index("bars") > printed.index("peak memory")
    path = tmp_path / "r.json"
    results.save(record, path)
    assert table.main([str(path)]) == 0
    readme = capsys.readouterr().out
    assert "| hadamard | 64 | 128 | 16384 | **10 ms** | 130 ms (12.0x) | 20 ms (2.0x) | - |" in readme
    assert "65536" not in readme  # nothing to compare with
    assert table.main([str(path), "--format", "markdown"]) == 0
    assert "65536" in capsys.readouterr().out


@pytest.mark.parametrize("seconds, text", [(1.05, "1.05 s"), (12.34, "12.3 s"), (0.0071234, "7.12 ms"),
                                           (0.1234, "123 ms"), (4.2e-5, "42 us")])
def test_duration(seconds, text):
    assert table.duration(seconds) == text


def test_plot_takes_one_n_and_adds_the_codes_held():
    times, held = plot.series(_record(), 64)
    assert times[LIBRARY, 128] == [(1 << 14, 0.01), (1 << 16, 0.05)]
    assert held["eager", 128] == [(1 << 14, 88.0)]
    assert plot.series(_record(), 65) == ({}, {})


def test_plot_writes_a_png(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "r.json"
    results.save(_record(), path)
    assert plot.main([str(path)]) == 0
    image = path.with_suffix(".png").read_bytes()
    assert image.startswith(b"\x89PNG") and len(image) > 10_000
    assert plot.main([str(path), "--n", "65"]) == 1
    assert "no measured row with n = 65; the record has n = 64" in capsys.readouterr().err


@pytest.mark.parametrize("main", [plot.main, table.main])
def test_commands_report_a_missing_file_in_one_sentence(main, tmp_path, capsys):
    assert main([str(tmp_path / "absent.json")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


# ---- machine -----------------------------------------------------------------------------------------------------


def test_cpu_fields_of_a_cpuinfo():
    text = ("processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu avx avx2 avx512f\n\n"
            "model name\t: Other\nflags\t: sse4_2")
    assert machine.cpu_fields(text) == {"cpu": "Some CPU", "cpu_flags": ["avx", "avx2", "avx512f"]}
    text = "vendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: Some CPU\n"
    assert machine.cpu_fields(text)["cpu"] == "Some CPU (family 26, model 2)"
    assert machine.cpu_fields("")["cpu"]


def test_description_of_this_machine():
    described = machine.describe(threads=2)
    assert described["threads"] == 2 and described["torch"] == torch.__version__ and described["cpu"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", described["date"])


def test_git_commit_outside_a_checkout(tmp_path):
    assert machine.git_commit(tmp_path) is None


# ---- memory ------------------------------------------------------------------------------------------------------

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks are read from /proc")


@linux_only
def test_memory_probe_sees_64_megabytes():
    """Held or given back before the end, the peak counts; a call that allocates nothing shows next to nothing."""
    size = 64 << 20

    def allocate_and_free():
        torch.ones(size, dtype=torch.uint8)

    # 4 MB cover what the interpreter and the kernel's batched page counts add.
    assert size - 4_000_000 < memory.peak_growth(allocate_and_free)["growth_bytes"] < size + 4_000_000
    held = []
    grown = memory.peak_growth(lambda: held.append(torch.ones(size, dtype=torch.uint8)))
    assert size - 4_000_000 < grown["growth_bytes"] < size + 4_000_000
    assert memory.peak_growth(lambda: None)["growth_bytes"] < 4_000_000


@linux_only
def test_memory_probe_in_a_fresh_process():
    """The authors' formula holds at least its eight p and their logits at once: autograd saves them."""
    row = Row(64, 8, 1 << 15)
    one_array = 4 * row.n * row.num_codes
    grown = memory.probe_in_fresh_process("eager", row, "reference", threads=1)
    assert grown["codes_bytes"] == 4 * row.num_features * row.num_codes
    assert grown["growth_bytes"] > 8 * one_array
    assert grown["peak_bytes"] - grown["before_bytes"] == grown["growth_bytes"]


@linux_only
def test_a_failing_memory_probe_says_why():
    with pytest.raises(memory.MemoryProbeError, match="failed: .*nonsense"):
        memory.probe_in_fresh_process(LIBRARY, ROW, "nonsense", threads=1)


# ---- the command -------------------------------------------------------------------------------------------------


def _pytest_bench(*options):
    command = [sys.executable, "-m", "pytest", "bench/", "-q", "-p", "no:cacheprovider", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_our_options_live_beside_those_of_pytest_benchmark():
    """pytest's option `--benchmark` must not be taken for an abbreviation of pytest-benchmark's `--benchmark-...`."""
    counts = []
    for options in (["--benchmark"], ["--benchmark-full"]):
        done = _pytest_bench("--collect-only", *options)
        assert done.returncode == 0, done.stdout + done.stderr
        counts.append(done.stdout.count("::test_"))
    quick = sum(not row.full_only for row in ROWS)
    assert counts == [2 * quick + len(LINEAR_BARS), 2 * len(ROWS) + len(LINEAR_BARS)]


def test_measuring_run_prints_the_tables_and_writes_json(tmp_path):
    """One real row, one round, the oracle as the library: the way from the option to the file."""
    path = tmp_path / "r.json"
    row = "hadamard-n64-f128-c262144"
    done = _pytest_bench("--benchmark", "--backend", "reference", "--rounds", "1", "--json", str(path), "-k", row)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "peak memory" in done.stdout and done.stdout.index("written:") < done.stdout.index("2 passed")
    record = results.load(path)
    assert [entry["name"] for entry in record["rows"]] == [row]
    library = record["rows"][0]["columns"][LIBRARY]
    assert len(library["forward"]["seconds"]) == 1 and library["memory"]["growth_bytes"] > 4 * 2 * 64 * 262144


def test_an_unknown_backend_stops_the_run_with_one_sentence():
    done = _pytest_bench("--backend", "nonsense")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "--backend nonsense: " in done.stderr and "Traceback" not in done.stderr
