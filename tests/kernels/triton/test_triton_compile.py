"""What the Triton backend launches compiles ahead of time for each architecture, without spills or too much memory."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from bench.gpu import triton_resources, tune
from bench.gpu.triton_resources import FORMS, SHARED_LIMIT, compile_form, compilers, is_used, problem
from cplearn_kernels.backends.triton import tuning
from cplearn_kernels.backends.triton.tuning import KERNELS, Configuration

TILE_KERNELS = {kernel.removesuffix("_one").removesuffix("_given") for kernel in KERNELS}


@pytest.fixture(scope="module")
def pool():
    """Processes in which kernels compile."""
    with compilers(os.cpu_count() or 1) as pool:
        yield pool


def check(records, expected):
    assert not {json.dumps(record): problem(record) for record in records if problem(record)}
    assert {record["kernel"] for record in records} & TILE_KERNELS == expected
    assert all(record["registers"] > (16 if record["kernel"] in TILE_KERNELS else 0) for record in records)


@pytest.mark.parametrize("arch, form", [("sm_90", "kronecker-256"), ("gfx942", "codes-32")])
def test_the_loss_compiles_without_spills(pool, arch, form):
    records = pool.submit(compile_form, arch, form, "loss").result()
    check(records, {"best_codes", "column_sums", "row_sums", "weighted_codes"})


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "gfx942"])
def test_every_form_compiles_without_spills(pool, arch):
    """The dearest modes; `python -m bench.gpu.triton_resources` compiles all modes and sm_100."""
    forms = [form for form in FORMS if is_used(form, arch)]
    for form, records in zip(forms, pool.map(compile_form, [arch] * len(forms), forms, ["dearest"] * len(forms))):
        used = [kernel for kernel in KERNELS if tune.has_kernel(kernel, form, arch)]
        check(records, {kernel.removesuffix("_one").removesuffix("_given") for kernel in used})
        # Kernels that have no configuration come with one of the forms.
        small = {record["kernel"] for record in records} - TILE_KERNELS
        assert len(small) >= 10 if form == triton_resources.SMALL_KERNELS_OF else not small


@pytest.mark.slow
def test_a_spill_too_much_shared_memory_and_a_failing_compiler_are_found(pool):
    # One warp would need 128 registers a thread for the sums alone; 100 is no power of two.
    tried = {"best_codes": Configuration(64, 64, 1), "column_sums": Configuration(64, 100, 4)}
    records = pool.submit(compile_form, "sm_90", "codes-128", "loss", tried).result()
    by_kernel = {record["kernel"]: record for record in records}
    assert "spills" in problem(by_kernel["best_codes"]) and "does not compile" in problem(by_kernel["column_sums"])
    good = by_kernel["weighted_codes"]
    assert problem(good) is None and "shared memory" in problem({**good, "shared": SHARED_LIMIT["sm_90"] + 1})


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_the_table_has_an_entry_for_every_kernel_and_form(arch):
    entries = tuning.table()["architectures"][arch]
    for kernel in KERNELS:
        for form in FORMS:
            if tune.has_kernel(kernel, form, arch):
                assert form in entries[kernel], (kernel, form)
                assert entries["how"][f"{kernel} {form}"] in ("counted", "measured", "ruled", "as sm_90")


def test_the_tuner_tries_tiles_that_fit_and_writes_an_entry(tmp_path, capsys, monkeypatch):
    for kernel in KERNELS:
        for arch, warps in (("sm_90", {4, 8}), ("gfx942", {2, 4})):
            tried = list(tune.candidates(kernel, "codes-grouped" if "chunk" in kernel else "codes-128", arch))
            assert len(tried) > 2 and {config.warps for config in tried} <= warps
    path, config = tmp_path / "tuning.json", Configuration(16, 64, 4)
    if not torch.cuda.is_available():  # then the interpreter is on, which takes any tile
        monkeypatch.setenv("TRITON_INTERPRET", "1")  # which the pool takes away
        monkeypatch.setattr(tune, "candidates", lambda *_: iter([config]))
        call = tune.call_of("best_codes", "codes-32", torch.device("cpu"), n=4, log2_codes=6)
        seconds, found = tune.fastest(call, "best_codes", "codes-32", "interpreter", 1, time.perf_counter)
        assert found == config and 0 < seconds < float("inf")
    tune.write(path, "sm_90", "best_codes", "codes-128", config)
    tune.write(path, "sm_91", "best_codes", "codes-128", config)
    table, before = json.loads(path.read_text())["architectures"], tuning.table()["architectures"]
    assert table["sm_90"]["best_codes"]["codes-128"] == table["sm_91"]["best_codes"]["codes-128"]
    assert table["sm_90"]["best_codes"]["codes-128"]["rows"] == 16 and table["sm_80"] == before["sm_80"]
    assert table["sm_90"]["how"]["best_codes codes-128"] == "measured"
    monkeypatch.setattr(tune.torch.cuda, "is_available", lambda: False)
    assert tune.main([]) == 2 and "no GPU" in capsys.readouterr().err


def test_only_architectures_with_a_record_are_verified():
    """An architecture is served by default only when docs/gpu-status.md says that its tests ran there."""
    status = (Path(__file__).parents[3] / "docs" / "gpu-status.md").read_text()
    for arch in json.loads(tuning.TABLE.read_text())["verified"]:
        assert f"verified: {arch}" in status or f"verified: triton {arch}" in status
