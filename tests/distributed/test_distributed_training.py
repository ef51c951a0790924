"""Training on 1 to 4 ranks leaves the parameters that one process with the whole batch leaves; DDP, FSDP2, compile."""

import contextlib
import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from cases import make_dictionary
from processes import Pool
from tiers import slow
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import cplearn_kernels as cpk
from train.distributed.sync_batch_norm import SyncBatchNorm

IN, F, C, STEPS = 12, 33, 500, 5


class Encoder(nn.Module):
    """Both views in one call, as DistributedDataParallel wants it."""

    def __init__(self):
        super().__init__()
        # No bias before a normalisation: its gradient is 0, and Adam would scale the rounding of it up to steps.
        self.backbone = nn.Sequential(nn.Linear(IN, 24, bias=False), nn.BatchNorm1d(24), nn.ReLU())
        self.head = cpk.CPLearnHead(24, F)

    def forward(self, first, second):
        return tuple(self.head(self.backbone(view)) for view in (first, second))


def images(n, dtype):
    """Batches of every step: (2 views, n, IN), related."""
    generator = torch.Generator().manual_seed(3)
    common = torch.randn(STEPS, 1, n, IN, generator=generator, dtype=torch.float64)
    return (common + 0.3 * torch.randn(STEPS, 2, n, IN, generator=generator, dtype=torch.float64)).to(dtype)


def trained(group, kind, prior, dtype, optimiser, accumulate, counts, wrap):
    """State dict after `STEPS` steps, on this rank's rows of each batch; without a group on all of them.

    With `accumulate` micro-batches a step's gradient is the sum of theirs, sent once.
    """
    torch.manual_seed(0)
    encoder = Encoder().to(dtype)
    module = encoder
    if wrap is not None:
        module = encoder = SyncBatchNorm.convert_sync_batchnorm(encoder)
    if wrap == "ddp":
        # Buffers: every rank computes the same ones.
        module = DistributedDataParallel(encoder, broadcast_buffers=False)
    elif wrap == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (group.size(),))
        fully_shard(encoder.backbone, mesh=mesh)
        fully_shard(encoder, mesh=mesh)
    criterion = cpk.CPLearnLoss(
        make_dictionary(kind, F, C), prior=prior, beta=0.5, process_group=None if wrap is None else "world",
        backend="torch" if dtype == torch.float64 else None,
    )  # fmt: skip
    if optimiser == "sgd":
        steps = torch.optim.SGD(module.parameters(), lr=0.5, momentum=0.9)
    else:
        steps = torch.optim.Adam(module.parameters(), lr=0.01)
    losses = []
    for batch in images(sum(counts) * accumulate, dtype):
        steps.zero_grad()
        for i, micro in enumerate(batch.chunk(accumulate, dim=1)):
            views = micro if wrap is None else micro.split(counts, dim=1)[group.rank()]
            with module.no_sync() if wrap == "ddp" and i < accumulate - 1 else contextlib.nullcontext():
                loss = criterion(*module(*views))
                (loss / accumulate).backward()
            losses.append(loss.item())
        steps.step()
    full = {name: value.full_tensor() if hasattr(value, "full_tensor") else value
            for name, value in encoder.state_dict().items()}  # fmt: skip
    return losses, {name: value.double().numpy() for name, value in full.items()}


def largest_deviation(found, expected):
    """Over all parameters and buffers, the largest |difference| over the tensor's largest |entry|."""
    assert found.keys() == expected.keys()
    return max(
        float(abs(found[name] - expected[name]).max() / max(abs(expected[name]).max(), 1e-3)) for name in expected
    )


@pytest.fixture(scope="module", params=[1, 2, slow(3), slow(4)])
def pool(request):
    pool = Pool(request.param, subgroups=False)
    yield pool
    pool.close()


def counts_for(pool):
    """Rows of each rank: 12 in all, not equal."""
    return {1: [12], 2: [5, 7], 3: [3, 2, 7], 4: [3, 2, 5, 2]}[len(pool.pipes)]


CASES = [
    ("hadamard", "reverse_kl", torch.float64, "adam", 1),
    ("hadamard", "cross_entropy", torch.float64, "sgd", 3),
    ("rademacher", "reverse_kl", torch.float64, "sgd", 1),
    ("rademacher", "cross_entropy", torch.float64, "adam", 1),
    ("hadamard", "reverse_kl", torch.float32, "sgd", 1),
    ("hadamard", "cross_entropy", torch.float32, "sgd", 1),
    ("rademacher", "reverse_kl", torch.float32, "sgd", 2),
    ("rademacher", "cross_entropy", torch.float32, "sgd", 1),
]
# Of five steps with float32 gradients, each off by up to 1e-5; in float64 rounding alone.
TOLERANCES = {torch.float64: 1e-12, torch.float32: 3e-5}


@pytest.mark.parametrize("kind, prior, dtype, optimiser, accumulate", CASES)
def test_parameters_equal_those_of_one_process(pool, conformance, kind, prior, dtype, optimiser, accumulate):
    counts = counts_for(pool)
    arguments = kind, prior, dtype, optimiser, accumulate
    losses, expected = trained(None, *arguments, counts, None)
    answers = pool.run(trained, *arguments, counts, "ddp")
    worst = max(largest_deviation(parameters, expected) for _, parameters in answers)
    assert all(of_rank == answers[0][0] for of_rank, _ in answers)
    of_losses = max(abs(a - b) / abs(b) for a, b in zip(answers[0][0], losses, strict=True))
    micro = f", {accumulate} micro-batches" if accumulate > 1 else ""
    conformance.record(f"ddp, ranks: {len(counts)}", f"parameters after {STEPS} steps", dtype,
                       f"{kind}, {prior}, {optimiser}{micro}", of_losses, worst, 2 * (TOLERANCES[dtype],))  # fmt: skip
    assert worst <= TOLERANCES[dtype] and of_losses <= TOLERANCES[dtype]
    # The steps were large enough to tell: the untrained parameters would not pass.
    torch.manual_seed(0)
    untrained = {name: value.double().numpy() for name, value in Encoder().to(dtype).state_dict().items()}
    assert largest_deviation(untrained, expected) > 100 * TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", [torch.float64, slow(torch.float32)])
def test_fully_sharded_parameters_equal_those_of_one_process(pool, conformance, dtype):
    counts = counts_for(pool)
    arguments = "hadamard", "reverse_kl", dtype, "sgd", 1
    _, expected = trained(None, *arguments, counts, None)
    worst = max(largest_deviation(found, expected) for _, found in pool.run(trained, *arguments, counts, "fsdp"))
    conformance.record(f"fsdp2, ranks: {len(counts)}", f"parameters after {STEPS} steps", dtype,
                       "hadamard, reverse_kl, sgd", 0.0, worst, 2 * (TOLERANCES[dtype],))  # fmt: skip
    assert worst <= TOLERANCES[dtype]


def compiled(group, named, compiler, reps=3):
    """(eager, compiled) losses and gradients of a function with its own arithmetic around the loss."""
    process_group = "world" if named else group
    dictionary = cpk.HadamardDictionary(F, C)

    def loss_of(x, weight):
        h1, h2 = (nn.functional.normalize(view @ weight, dim=1) for view in x)
        loss = cpk.cplearn_loss(h1, h2, dictionary, temperature=0.3, process_group=process_group)
        mean = cpk.mean_assignment(h1, dictionary, temperature=0.3, process_group=process_group)
        return 2 * loss + mean.square().sum()

    found = []
    for function in (loss_of, torch.compile(loss_of, backend=compiler, fullgraph=True)):
        for n in range(4, 4 + reps):  # another number of rows: perhaps compiled again
            weight = torch.randn(IN, F, generator=torch.Generator().manual_seed(1)).requires_grad_()
            x = torch.randn(2, n + group.rank(), IN, generator=torch.Generator().manual_seed(group.rank()))
            loss = function(x, weight)
            found.append([loss.detach().numpy(), torch.autograd.grad(loss, weight)[0].numpy()])
    return found[:reps], found[reps:]


@pytest.mark.parametrize("pool", [2], indirect=True)
@pytest.mark.parametrize("named, compiler", [(False, "aot_eager"), slow(True, "inductor"), slow(False, "inductor")])
def test_compiled_whole(pool, named, compiler):
    for eager, whole in pool.run(compiled, named, compiler):
        for (loss, gradient), (loss2, gradient2) in zip(eager, whole, strict=True):
            assert abs(loss - loss2) <= 1e-6 * abs(loss)
            assert abs(gradient - gradient2).max() <= 1e-5 * abs(gradient).max()


def uncopied(group):
    """A module with process_group="world" copied and pickled."""
    criterion = cpk.CPLearnLoss(cpk.HadamardDictionary(F, C), process_group="world", backend="torch")
    h = torch.ones(2, 3, F)
    return [float(c(*h)) for c in (criterion, copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion)))]


def test_a_module_of_the_default_group_can_be_copied_and_pickled(pool):
    for losses in pool.run(uncopied):
        assert losses[0] == losses[1] == losses[2]
    assert not dist.is_initialized()
