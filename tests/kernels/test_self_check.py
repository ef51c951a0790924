"""Tests of the check that a GPU backend goes through before its first result: what passes, what raises, and when."""

from __future__ import annotations

import types

import emulated
import pytest
import torch
from cases import one_thread  # noqa: F401
from other_blas import other_blas

from cplearn_kernels.backends import self_check
from cplearn_kernels.backends.chunked import functions as chunked
from cplearn_kernels.backends.cuda import functions as cuda

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def on_cpu(loss, calls=None):
    """A backend module whose loss runs on the CPU wherever it is asked to run."""

    def cplearn_loss(h1, h2, *arguments):
        if calls is not None:
            calls.append(h1.shape)
        return loss(h1, h2, *arguments)

    return types.SimpleNamespace(NAME="stand-in", cplearn_loss=cplearn_loss)


@pytest.fixture
def pretended_gpu(monkeypatch):
    """Lets `ensure` believe in a GPU, while the check itself stays on the CPU."""
    monkeypatch.setattr(self_check, "_checked", set())
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a pretended GPU")
    measured = self_check.largest_error
    monkeypatch.setattr(self_check, "largest_error", lambda backend, device: measured(backend, CPU))


def test_right_kernels_pass():
    assert self_check.largest_error(chunked, CPU) < 1e-6
    with cuda.emulated(emulated.kernels()):
        assert self_check.largest_error(cuda, CPU) < 1e-6


@pytest.mark.parametrize("seed", range(8))
def test_right_kernels_pass_with_any_blas(seed):
    """With half of the bound in hand."""
    with other_blas(seed):
        assert self_check.largest_error(chunked, CPU) < 5e-7


@pytest.mark.parametrize("spoil", [
    lambda loss, a, b, g1, g2: (loss * 1.001, a, b, g1, g2),
    lambda loss, a, b, g1, g2: (loss, a, b, -g1, g2),
    lambda loss, a, b, g1, g2: (loss, a, b, g2, g1),
    lambda loss, a, b, g1, g2: (loss, a, b, g1, g2 * 0),
    lambda loss, a, b, g1, g2: (loss, a, b, g1 * float("nan"), g2),
])  # fmt: skip
def test_wrong_kernels_raise_in_every_call(spoil, pretended_gpu):
    backend = on_cpu(lambda *arguments: spoil(*chunked.cplearn_loss(*arguments)))
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"'stand-in' gives wrong results on cuda:0 \(a pretended GPU\)"):
            self_check.ensure(backend, GPU)


def test_once_per_device_and_not_during_a_capture(pretended_gpu, monkeypatch):
    calls = []
    backend = on_cpu(chunked.cplearn_loss, calls)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    self_check.ensure(backend, GPU)
    assert not calls
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    self_check.ensure(backend, GPU)
    first = len(calls)
    assert first > 0
    self_check.ensure(backend, GPU)
    assert len(calls) == first
    self_check.ensure(backend, torch.device("cuda", 1))
    assert len(calls) == 2 * first
    self_check.ensure(backend, CPU)
    assert len(calls) == 2 * first


def test_it_leaves_the_random_generators_alone():
    before = torch.get_rng_state()
    self_check.largest_error(chunked, CPU)
    assert torch.equal(before, torch.get_rng_state())
