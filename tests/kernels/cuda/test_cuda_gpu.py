"""Tests of the CUDA backend that need a GPU. Skipped without one."""

from __future__ import annotations

import pytest
import torch
from gpu_checks import GpuChecks, views_of

import cplearn_kernels as cpk
from cplearn_kernels.backends import self_check
from cplearn_kernels.backends.cuda import functions as cuda

pytestmark = pytest.mark.skipif(
    cuda.unavailable() is not None, reason=f"cannot run here: {cuda.unavailable() or 'it can'}"
)


class TestCuda(GpuChecks):
    backend = "cuda"

    @pytest.mark.parametrize("f", [33, 64, 200, 256, 512, 1000, 8192])
    def test_every_size_of_a_block(self, f):
        """Against the chunked backend on the same GPU, with enough codes for several splits."""
        dictionary, views = cpk.HadamardDictionary(f, 70001, seed=5), views_of(40, f)
        temperature = cpk.default_temperature(f, 70001)
        losses = {}
        for backend in ("cuda", "torch"):
            wrt = [view.clone().requires_grad_() for view in views]
            loss = cpk.cplearn_loss(*wrt, dictionary, temperature=temperature, backend=backend)
            losses[backend] = loss.detach(), torch.cat(torch.autograd.grad(loss, wrt))
        (loss, gradient), (expected, expected_gradient) = losses["cuda"], losses["torch"]
        assert abs(loss - expected) <= 2e-6 * abs(expected)
        assert (gradient - expected_gradient).norm() <= 2e-5 * expected_gradient.norm()

    def test_no_call_waits_for_the_device(self):
        """But for the self-check of the first one."""
        dictionary, views = cpk.HadamardDictionary(256, 5000), views_of(64, 256)
        cpk.cplearn_loss(*views, dictionary, temperature=0.5, backend="cuda")
        torch.cuda.set_sync_debug_mode("error")
        try:
            wrt = [view.clone().requires_grad_() for view in views]
            cpk.cplearn_loss(*wrt, dictionary, temperature=0.5, backend="cuda").backward()
            cpk.assign(views[0], dictionary, backend="cuda")
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_the_self_check_passes_here(self):
        assert self_check.largest_error(cuda, torch.device("cuda")) < 1e-5
