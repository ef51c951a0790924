"""The loss over ranks with tensors on GPUs: gloo on one GPU, NCCL where each rank has its own. Skipped without one."""

import pytest
import torch
from over_ranks import SETTINGS, check_over_ranks
from processes import Pool

import cplearn_kernels as cpk

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that PyTorch can use")

GPUS = torch.cuda.device_count()


def on_a_gpu(group):
    device = torch.device("cuda", group.rank() % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


@pytest.fixture(scope="module", params=["gloo", "cpu:gloo,cuda:nccl", "nccl"])
def pool(request):
    if "nccl" in request.param and GPUS < 2:
        pytest.skip(f"NCCL wants a GPU for each of two ranks, found {GPUS}")
    pool = Pool(2, subgroups=False, backend=request.param)
    yield pool
    pool.close()


@pytest.mark.parametrize("kind, f, c", [("hadamard", 200, 70_001), ("rademacher", 128, 20_000), ("dense", 64, 5000)])
@pytest.mark.parametrize("backend", ["torch", "triton", "cuda"])
def test_loss(pool, conformance, backend, kind, f, c):
    if not cpk.backends()[backend].available:
        pytest.skip(cpk.backends()[backend].reason)
    more = "l2", torch.float32, backend, "sharded", SETTINGS[::2], on_a_gpu
    check_over_ranks(pool, conformance, 2, kind, f, c, 25, *more)
