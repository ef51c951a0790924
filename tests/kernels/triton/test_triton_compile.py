"""Every Triton configuration compiles ahead of time for each architecture, without spills, within shared memory."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from pathlib import Path

import pytest

pytest.importorskip("triton")
from bench import triton_resources, tune  # noqa: E402
from bench.triton_resources import FORMS, KERNELS, SHARED_LIMIT, Variant, compilers, problem, variants  # noqa: E402
from cplearn_kernels.backends.triton import tuning  # noqa: E402


@pytest.fixture(scope="module")
def compiled():
    """The records of variants."""
    with compilers(os.cpu_count() or 1) as compiled:
        yield lambda wanted: list(compiled(wanted))


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "gfx942"])
def test_every_configuration_compiles_without_spills(arch, compiled):
    """The dearest mode of each kernel; `python -m bench.triton_resources` compiles all modes and sm_100."""
    records = compiled(variants(arch, dearest=True))
    problems = {(r["kernel"], r["form"], str(r["options"])): problem(r) for r in records if problem(r)}
    assert not problems
    assert {(r["kernel"], r["form"]) for r in records} == {
        (kernel, form) for kernel in KERNELS for form in FORMS if triton_resources.is_used(kernel, form, arch)
    }
    assert all(r["registers"] > 16 and r["instructions"] > 100 for r in records)


def test_small_kernels_compile_too(compiled):
    """Those of rows, columns and bits, which have no configurations, for both makers."""
    for arch in ("sm_90", "gfx942"):
        records = compiled(triton_resources.small_variants(arch))
        assert not {r["kernel"]: problem(r) for r in records if problem(r)}
        assert len(records) >= 12


def test_a_spill_and_too_much_shared_memory_are_found(compiled):
    (variant,) = variants("sm_90", ["best_codes"], ["codes-128"])
    # One warp would need 128 registers a thread for the sums alone; 100 is no power of two.
    spilling = dataclasses.replace(variant, rows=64, codes=64, warps=1)
    broken = Variant("sm_90", "best_codes", "codes-128", (), 64, 100, 4, 2)
    good, spilled, failed = compiled([variant, spilling, broken])
    assert problem(good) is None
    assert "shared memory" in problem({**good, "shared": SHARED_LIMIT["sm_90"] + 1})
    assert "spills" in problem(spilled)
    assert "does not compile" in problem(failed)


def test_counting_chooses_among_the_candidates_that_compile(compiled, monkeypatch):
    few = list(tune.candidates("best_codes", "codes-32", "sm_90"))[:2]
    monkeypatch.setattr(tune, "candidates", lambda *_: few)
    monkeypatch.setattr(tune, "compilers", lambda jobs: contextlib.nullcontext(compiled))
    ((key, (configuration, record)),) = tune.count_all(["sm_90"], ["best_codes"], ["codes-32"], 1).items()
    assert key == ("sm_90", "best_codes", "codes-32")
    assert configuration in few and record["cost"] > 0 and problem(record) is None


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_the_table_has_an_entry_for_every_kernel_and_form(arch):
    entries = tuning.table()["architectures"][arch]
    for kernel in KERNELS:
        for form in FORMS:
            if triton_resources.is_used(kernel, form, arch):
                assert form in entries[kernel], (kernel, form)
                assert entries["how"][f"{kernel} {form}"] in ("counted", "measured", "ruled", "as sm_90")


def test_only_architectures_with_a_record_are_verified():
    """An architecture is served by default only when docs/gpu-status.md says that its tests ran there."""
    status = (Path(__file__).resolve().parents[3] / "docs" / "gpu-status.md").read_text()
    for arch in json.loads(tuning.TABLE.read_text())["verified"]:
        assert f"verified: {arch}" in status
