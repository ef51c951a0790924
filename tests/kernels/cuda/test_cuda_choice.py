"""Tests of the choice among GPU backends: by tested architectures, kind of dictionary and number of features."""

from __future__ import annotations

import json
import types

import pytest
import torch
from cases import make_dictionary, one_thread  # noqa: F401

from cplearn_kernels.backends import select, self_check
from cplearn_kernels.backends.cuda import architectures
from cplearn_kernels.backends.cuda import functions as cuda
from cplearn_kernels.backends.select import _fastest
from cplearn_kernels.backends.triton import functions as triton_backend

H = types.SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32)


@pytest.fixture
def pretended(monkeypatch):
    """A machine with an sm_90 GPU; the records are what the test says."""

    def pretend(cuda_verified=(), triton_verified=(), preferred=None, triton_there=True):
        record = {"verified": list(cuda_verified), "preferred_over_triton": preferred or {}}
        monkeypatch.setattr(architectures, "_record", lambda: record)
        monkeypatch.setattr(architectures, "name", lambda device: "sm_90")
        for module in (cuda, triton_backend):
            monkeypatch.setattr(module, "unsupported_device", lambda device: None)
            monkeypatch.setattr(module, "unavailable", lambda: None)
        if not triton_there:
            monkeypatch.setattr(triton_backend, "unavailable", lambda: "not installed")
        monkeypatch.setattr(triton_backend, "_interpreted", lambda: False, raising=False)
        monkeypatch.setattr(triton_backend, "architecture", lambda device: "sm_90", raising=False)
        monkeypatch.setattr(triton_backend, "verified", lambda: tuple(triton_verified), raising=False)

    return pretend


def chosen(kind="hadamard", f=128):
    return _fastest("cplearn_loss", make_dictionary(kind, f, 1000), H).NAME


def test_what_no_test_has_run_on_is_not_chosen(pretended):
    pretended()
    assert chosen() == "torch"
    assert "name it to use it" in cuda.reservation(make_dictionary("hadamard", 128, 1000), H.device)
    pretended(cuda_verified=["sm_80"])
    assert chosen() == "torch"


def test_the_one_that_is_tested_is_chosen(pretended):
    pretended(cuda_verified=["sm_90"])
    assert chosen() == "cuda" and chosen("rademacher") == "cuda"
    pretended(triton_verified=["sm_90"])
    assert chosen() == "triton"


def test_of_two_the_one_that_was_measured_to_be_faster_is_chosen(pretended):
    both = dict(cuda_verified=["sm_90"], triton_verified=["sm_90"])
    pretended(**both)
    assert chosen() == "triton"
    ranges = {"sm_90": {"hadamard": [64, 2048]}, "sm_80": {"rademacher": [1, 8192]}}
    pretended(**both, preferred=ranges)
    assert [chosen(f=f) for f in (33, 64, 2048, 2049)] == ["triton", "cuda", "cuda", "triton"]
    assert chosen("rademacher") == "triton"
    pretended(**both, triton_there=False)
    assert chosen() == "cuda"


def test_few_features_go_elsewhere(pretended):
    pretended(cuda_verified=["sm_90"], preferred={"sm_90": {"hadamard": [1, 8192]}})
    assert chosen(f=16) == "torch" and chosen(f=17) == "cuda"


def test_a_failed_self_check_reaches_the_caller(pretended, monkeypatch):
    pretended(cuda_verified=["sm_90"])

    def refuse(module, device):
        raise RuntimeError(f"{module.NAME} gives wrong results on {device}")

    monkeypatch.setattr(self_check, "ensure", refuse)
    for name in (None, "cuda"):
        with pytest.raises(RuntimeError, match="cuda gives wrong results on cuda:0"):
            select(name, "cplearn_loss", make_dictionary("hadamard", 128, 1000), H)


def test_the_record_in_the_package_is_well_formed():
    record = json.loads(architectures._RECORD.read_text())
    assert set(record) == {"verified", "preferred_over_triton"}
    assert all(name.startswith("sm_") for name in (*record["verified"], *record["preferred_over_triton"]))
    for ranges in record["preferred_over_triton"].values():
        assert set(ranges) <= {"hadamard", "rademacher", "dense"}
        assert all(1 <= least <= most <= 8192 for least, most in ranges.values())
    # Nothing is claimed of an architecture that docs/gpu-status.md does not tell of.
    status = (architectures._RECORD.parents[3] / "docs" / "gpu-status.md").read_text()
    assert all(f"verified: cuda {name}" in status for name in record["verified"])
