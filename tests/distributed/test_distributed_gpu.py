"""The loss over ranks with tensors on GPUs: gloo on one GPU, NCCL where each rank has its own. Skipped without one."""

import pytest
import torch
from oracle import LossOracle, check_loss, make_case
from processes import Pool
from test_distributed import SETTINGS, dictionary_of, own_rows

import cplearn_kernels as cpk

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that PyTorch can use")

GPUS = torch.cuda.device_count()
COUNTS = [9, 16]


def loss_on_devices(group, kind, f, c, backend):
    """For each setting (loss, gradients of this rank's rows), on the CPU again."""
    device = torch.device("cuda", group.rank() % torch.cuda.device_count())
    torch.cuda.set_device(device)
    dictionary, found = dictionary_of(kind, f, c), []
    case = make_case(dictionary, sum(COUNTS), "l2")
    for prior, _, beta in SETTINGS[::2]:
        views = [view.detach().to(device).requires_grad_() for view in own_rows(group, case.views, COUNTS, "sharded")]
        loss = cpk.cplearn_loss(
            *views, dictionary.to(device), temperature=case.temperature, beta=beta, prior=prior, process_group=group,
            backend=backend,
        )  # fmt: skip
        found.append([value.detach().cpu().numpy() for value in (loss, *torch.autograd.grad(loss, views))])
    return found


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
    answers = pool.run(loss_on_devices, kind, f, c, backend)
    dictionary = dictionary_of(kind, f, c)
    oracle = LossOracle(dictionary, make_case(dictionary, sum(COUNTS), "l2"))
    for i, (prior, _, beta) in enumerate(SETTINGS[::2]):
        of_ranks = [[torch.from_numpy(value) for value in answer[i]] for answer in answers]
        gradients = [torch.cat([values[view] for values in of_ranks]) / 2 for view in (1, 2)]
        assert of_ranks[0][0] == of_ranks[1][0]
        check_loss(conformance, f"{backend}, ranks: 2", oracle, (prior, False, beta), of_ranks[0][0], gradients)
