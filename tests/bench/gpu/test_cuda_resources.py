"""The report of the CUDA kernels' resources: canned text, and the extension that is installed here."""

from __future__ import annotations

import json
import shutil

import pytest

from bench.gpu import cuda_resources
from bench.results import RESULTS

KERNELS = {
    "_ZN7cplearn4cuda14weighted_codesINS0_13HadamardTilesILi11EEELNS0_7PurposeE1EEEvNS0_22WeightedCodesArgumentsE":
        "weighted_codes<HadamardTiles<11>, (Purpose)1>",
    "_ZN7cplearn4cuda45_GLOBAL__N__ae8561a5_12_codes_out_cu_b2657dc518finish_sums_kernelILNS0_6ResultE0EEEvNS0_10FinishSumsE":
        "finish_sums_kernel<(Result)0>",
}  # fmt: skip
USAGE = """
Fatbin elf code:
================
arch = sm_90
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function {}:
  REG:168 STACK:{} SHARED:1024 LOCAL:{} CONSTANT[0]:640 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


@pytest.mark.parametrize("mangled, name", KERNELS.items())
def test_what_cuobjdump_prints_is_read_and_a_stack_is_found(mangled, name):
    for stack, local in ((0, 0), (8, 0), (0, 4)):
        (found,) = cuda_resources.parse(USAGE.format(mangled, stack, local))
        numbers = {"registers": 168, "stack": stack, "local": local, "shared": 1024}
        assert found == {"arch": "sm_90", "kernel": name if shutil.which("c++filt") else mangled, **numbers}
        assert bool(cuda_resources.spilling([found])) == bool(stack or local)


def test_the_installed_extension_has_no_spill():
    records = cuda_resources.read()
    if isinstance(records, str):
        pytest.skip(records)
    assert len(records) > 100 and cuda_resources.spilling(records) == []


def test_the_record_has_every_architecture_and_no_spill():
    """bench/results/cuda_resources.json, as `python -m bench.gpu.cuda_resources` writes it."""
    kernels = json.loads((RESULTS / "cuda_resources.json").read_text())["kernels"]
    assert {record["arch"] for record in kernels} >= {"sm_80", "sm_90", "sm_100"}
    assert cuda_resources.spilling(kernels) == [] and all(0 < record["registers"] <= 255 for record in kernels)


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cuda_resources, "RESULTS", tmp_path)
    for stack, status in ((0, 0), (8, 1)):
        records = cuda_resources.parse(USAGE.format("f", stack, 0))
        monkeypatch.setattr(cuda_resources, "read", lambda records=records: records)
        assert cuda_resources.main() == status
        assert json.loads((tmp_path / "cuda_resources.json").read_text())["kernels"][0]["stack"] == stack
    monkeypatch.setattr(cuda_resources, "read", lambda: "no cuobjdump")
    assert cuda_resources.main() == 2 and "no cuobjdump" in capsys.readouterr().err
