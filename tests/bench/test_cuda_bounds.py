"""Bounds of the cuda backend: the plan against the core's own count, the model's pieces, the tables."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2]))  # bench/ is used from the checkout and never installed

from bench import cuda_alternatives, cuda_bounds, cuda_model  # noqa: E402
from bench.cuda_model import new_best_share, pass_cost, throughput  # noqa: E402
from bench.cuda_plan import plan  # noqa: E402
from bench.cuda_times import _pass, seconds, steps  # noqa: E402
from bench.gpu_rates import GPUS  # noqa: E402

H200, A100 = (next(gpu for gpu in GPUS if gpu.name == name) for name in ("H200", "A100"))
SHAPES = [
    (64, 128, 1 << 30),
    (256, 2048, 1 << 20),
    (64, 2048, 1 << 14),
    (5, 40, 1000),
    (1024, 384, 1 << 17),
    (7, 5000, 12345),
]


def _core():
    try:
        from cplearn_kernels import _core
    except ImportError as error:
        pytest.skip(f"the core is not built: {error}")
    if not hasattr(_core, "cuda"):
        pytest.skip(f"the core holds no CUDA kernels: {_core.without_cuda}")
    return _core.cuda


# ---- the plan -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpu", [H200, A100], ids=lambda gpu: gpu.name)
@pytest.mark.parametrize("dictionary", ["hadamard", "rademacher"])
def test_the_plan_takes_the_memory_that_the_core_counts(gpu, dictionary):
    """A call without memory only counts; no GPU is needed for it."""
    core = _core()
    for n, f, c in SHAPES:
        log2 = (f - 1).bit_length() if dictionary == "hadamard" else 0
        codes = core.Dictionary(("hadamard", "rademacher").index(dictionary), f, c, 0, log2, 1, 1, 0)
        device = core.Device(0, 0, gpu.processors, 163 * 1024, 1 << 22, 1 << 22)
        counted = core.cplearn_loss(device, 0, codes, [(1, 0, f, 1)] * 2, n, 0.1, 1.0, 0, 0, 0, 8, 8)
        assert plan(gpu, dictionary, n, f, c).bytes == counted, (n, f, c)


def test_the_plan_for_known_sizes():
    """By hand from problem.cpp. 512 rows in pairs are 256 blocks of threads a part, for 396 places: three parts fill two
    rounds of them, where one leaves a third of the places idle. In pass 1 two rows share a block, and 528 places there
    take two parts of 256."""
    p = plan(H200, "hadamard", 256, 2048, 1 << 20)
    assert (p.total, p.spans, p.block, p.team, p.products) == (512, 1, 2048, 64, 0)
    assert (p.best.parts, p.best.size, p.sums.parts, p.sums.size) == (2, 256, 3, 171) and p.column_splits == 1
    p = plan(H200, "hadamard", 64, 128, 1 << 30)
    assert (p.spans, p.team) == (256, 4) and p.best.parts * 4 <= 4 * 528 and p.bytes < 0.2e9
    assert dict(p.launches())["block_signs"] == 2 * dict(p.launches())["best_codes"] == 512
    kept, again = (plan(H200, "rademacher", n, 128, 1 << 14) for n in (64, 256))
    assert (kept.products, kept.spans) == (3, 1) and (again.products, again.spans) == (4, 2)
    assert dict(kept.launches())["sign_product"] == 1 and dict(again.launches())["sign_product"] == 4


# ---- the model ------------------------------------------------------------------------------------------------------


def test_throughput_of_a_closed_network():
    assert throughput([10.0], 0.0, 5) == pytest.approx(0.1)  # one queue is always busy
    assert throughput([10.0, 5.0], 15.0, 1) == pytest.approx(1 / 30)  # alone, nothing overlaps
    assert throughput([10.0, 10.0], 0.0, 3) == pytest.approx(0.75 / 10)  # balanced pair: N / (N + 1)
    assert throughput([10.0], 90.0, 2) < 2 / 100 < throughput([10.0], 90.0, 3) < 0.1
    between = throughput([10.0, 4.0], 20.0, 2.5)
    assert between == pytest.approx((throughput([10.0, 4.0], 20.0, 2) + throughput([10.0, 4.0], 20.0, 3)) / 2)


def test_a_new_best_is_certain_in_the_first_round_and_rare_in_a_long_split():
    assert new_best_share(1) == 1.0
    assert 0.05 < new_best_share(83) < 0.07 and new_best_share(1 << 15) < 0.001
    assert new_best_share(83) == pytest.approx(sum(1 / k for k in range(1, 84)) / 83)
    assert new_best_share(83) < new_best_share(83, rows=8) < 0.4  # any of the rows that share a warp


def test_a_pass_is_bound_by_its_busiest_unit_and_more_warps_help():
    p = plan(H200, "hadamard", 256, 2048, 1 << 20)
    cost = pass_cost(H200, "weighted_codes reverse_kl", p, p.sums)
    assert cost.bound == cost.units[cost.busiest] == max(cost.units.values())
    assert cost.bound < cost.predicted() < cost.predicted(4) < cost.predicted(1)
    # 33 levels of transforms and an exponential at the least.
    assert cost.units["fp32"] >= 33 / 128 and cost.units["special"] >= 1 / 16
    # 24 bytes of three exchanges and 8 of the partner's.
    assert cost.units["shared"] >= 32 / 128


def test_halving_a_rate_doubles_what_it_bounds():
    slow = dataclasses.replace(H200, issue=H200.issue // 2)
    p = plan(H200, "hadamard", 256, 2048, 1 << 20)
    usual, slowed = (pass_cost(gpu, "column_sums", p) for gpu in (H200, slow))
    assert slowed.units["issue"] == 2 * usual.units["issue"] and slowed.units["fp32"] == usual.units["fp32"]


@pytest.mark.parametrize("gpu", [H200, A100], ids=lambda gpu: gpu.name)
@pytest.mark.parametrize("dictionary, n, f, c", [
    ("hadamard", 256, 2048, 1 << 20), ("hadamard", 64, 33, 1000), ("hadamard", 64, 8192, 1 << 14),
    ("rademacher", 64, 128, 1 << 14), ("rademacher", 256, 2048, 1 << 17),
])  # fmt: skip
def test_every_launch_has_a_time_and_the_prediction_is_above_the_bound(gpu, dictionary, n, f, c):
    p = plan(gpu, dictionary, n, f, c)
    timed = steps(gpu, p)
    assert [(step.kernel, step.launches) for step in timed] == p.launches()
    assert all(0 < step.bound <= step.predicted for step in timed), timed
    bound, predicted = seconds(gpu, p)
    assert bound < predicted
    # Adding codes costs time in proportion, up to the start of a call.
    assert seconds(gpu, plan(gpu, dictionary, n, f, 16 * c))[1] > 4 * (predicted - 4e-5 * len(timed))


def test_a_pass_takes_whole_waves():
    """A multiprocessor with one block more than the others ends last; waves are as long as their largest block."""
    cost = pass_cost(H200, "column_sums", plan(H200, "hadamard", 256, 2048, 1 << 20))
    places = H200.processors * cost.blocks

    def predicted(grid):
        return _pass(H200, cost, grid * 1000.0, grid, 1000.0)[1]

    assert predicted(1) == predicted(H200.processors) < predicted(H200.processors + 1)
    assert predicted(3 * places) == pytest.approx(3 * predicted(places))
    assert predicted(places + 1) == pytest.approx(predicted(places) + predicted(1))
    assert predicted(places) == pytest.approx(cost.predicted() * 1000 * places / H200.clocks)


def test_scattered_weights_take_whole_sectors():
    p = plan(H200, "rademacher", 256, 128, 1 << 20)
    cost = pass_cost(H200, "weighted_codes reverse_kl", p, p.sums)
    # Two products of 4 bytes, g among the 32 rows of a block of threads, 8 bytes of weights in sectors a quarter full.
    assert cost.units["l2"] * H200.l2 == pytest.approx(4 + 4 + 4 / 32 + 4 * 8)


def test_the_bound_that_the_benchmark_shows():
    found = cuda_bounds.bound("sm_90", "hadamard", 256, 2048, 1 << 20)
    assert 1e11 < found["predicted_logits_per_second"] < found["logits_per_second"] < 1e12
    assert "tensor_flops" not in found and cuda_bounds.bound("gfx942", "hadamard", 256, 2048, 1 << 20) is None
    # Four products of rows or weights, two half floats each, with 128 terms of a multiplication and an addition.
    assert cuda_bounds.bound("sm_90", "rademacher", 256, 100, 1 << 20)["tensor_flops"] == 4 * 2 * 2 * 128


# ---- tables ---------------------------------------------------------------------------------------------------------


def test_the_command_prints_all_tables_and_measurements_where_there_are_any(tmp_path, capsys):
    assert cuda_bounds.main(["--gpu", "H200"]) == 0
    out = capsys.readouterr().out
    assert (
        "A100" not in out
        and "predicted only" in out
        and "`finish_sums`" in out
        and "measured" not in out.split("\n")[0]
    )
    record = {"machine": {"architecture": "sm_90"}, "rows": [
        {"task": "loss", "dictionary": "hadamard", "n": 64, "num_features": 128, "num_codes": 1 << 14,
         "cells": {"library:cuda": {"median": 0.012345}, "library:triton": {"median": 9.0}}},
        {"task": "assign", "dictionary": "hadamard", "n": 64, "num_features": 384, "num_codes": 1 << 14,
         "cells": {"library:cuda": {"median": 0.054321}}}]}  # fmt: skip
    (tmp_path / "gpu.json").write_text(json.dumps(record))
    assert cuda_bounds.main(["--gpu", "H200", "--results", str(tmp_path / "gpu.json")]) == 0
    with_measured = capsys.readouterr().out
    assert " / 12.3 |" in with_measured and "54.3" not in with_measured and with_measured.startswith("Predictions")


def test_bars_are_judged_in_the_right_direction(monkeypatch):
    def times(value):
        monkeypatch.setattr(cuda_bounds, "seconds", lambda gpu, p: (value, value))
        return {(what, shape): met for what, shape, _, _, met in cuda_bounds.bars(H200)}

    fast, slow = times(1e-6), times(1e3)
    assert all(fast.values()) and len(fast) == 9 + 6  # bars, and goals of the rates
    assert [what for (what, _), met in slow.items() if met] == ["bar, bytes"]


def test_without_a_report_the_command_says_so(monkeypatch, capsys):
    monkeypatch.setattr(cuda_bounds, "kernels", dict)
    assert cuda_bounds.main([]) == 2 and "python -m bench.cuda_resources" in capsys.readouterr().err


def test_alternatives_start_from_what_is_built(capsys):
    assert cuda_alternatives.main([]) == 0
    out = capsys.readouterr().out
    assert out.count("| built: butterflies, one exchange |") == 4 and "| 1.00x |" in out
    found = cuda_alternatives.alternatives(H200, 2048)
    # The Kronecker form takes 192 multiply-adds for each of 5 transforms: on mma.sync more clocks than all issue.
    tensor = sum(cost.units["tensor"] for cost in found["Kronecker form, mma.sync"].values())
    assert tensor == pytest.approx(5 * 192 / H200.mma)
    assert all("tensor" not in cost.units for cost in found[cuda_alternatives.BUILT].values())


def test_the_report_has_every_kernel_that_the_model_asks_for():
    for gpu in (H200, A100):
        for tile in ("64", "128", "256", "512", "1024", "2048", "4096", "8192", "stored"):
            for kernel in ("best_codes", "column_sums", "weighted_codes reverse_kl"):
                assert cuda_model.kernels()[gpu.architecture, tile, kernel]["loop"]["common"]["special"] >= 32
