"""Tests of the Triton backend that need a GPU. Skipped without one."""

from __future__ import annotations

import pytest
import torch
from gpu_checks import GpuChecks

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
pytest.importorskip("triton")


class TestTriton(GpuChecks):
    backend = "triton"
