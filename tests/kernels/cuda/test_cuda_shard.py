"""Tests of the CUDA backend's Shard: ranges of codes, one after the other, give the loss. Emulated without a GPU."""

from __future__ import annotations

import math

import emulated
import pytest
import torch
from cases import embeddings, make_dictionary, one_thread, same_bits  # noqa: F401
from oracle import (
    FEW_FEATURES,
    GRADIENT_TOLERANCE,
    REGIMES,
    LossOracle,
    check_loss,
    make_case,
    prior_probs,
    relative_error,
    signs_dictionary,
)  # fmt: skip
from shards import loss_by_shards, mean_assignment_by_shards
from test_cuda import DEVICE, ON_GPU, emulation, short_spans  # noqa: F401

from cplearn_kernels import DenseDictionary, default_temperature, reference
from cplearn_kernels.backends.cuda import functions as cuda
from cplearn_kernels.backends.cuda import launch
from cplearn_kernels.backends.cuda import shard as cuda_shard
from cplearn_kernels.distributed.loss import merge_row_sums
from cplearn_kernels.distributed.ranges import CodeRange, code_ranges

LABEL = "cuda, ranges of codes"
# Tiles of 1 to 256 threads and stored ones, blocks of few features among them; 129 features of 250 codes are one block
# for three ranks. No c is a multiple of a block.
SHAPES = [
    ("hadamard", 1, 5, 2, 3), ("hadamard", 7, 300, 5, 5), ("hadamard", 20, 300, 3, 2), ("hadamard", 33, 200, 9, 5),
    ("hadamard", 100, 700, 5, 2), ("hadamard", 129, 250, 3, 3), ("hadamard", 200, 700, 5, 1),
    ("hadamard", 600, 2500, 2, 3), ("hadamard", 5000, 8300, 1, 2), ("rademacher", 40, 300, 17, 3),
    ("rademacher", 130, 203, 3, 2), ("rademacher", 33, 3, 5, 2), ("dense", 100, 301, 5, 3), ("dense", 129, 203, 3, 5),
]  # fmt: skip


def run_shards(dictionary, case, setting, world, need_grad=True):
    """(loss, invariance, prior, gradients) of one setting by ranges, on the CPU."""
    prior, given, beta = setting
    q = prior_probs(dictionary.num_codes, with_zeros=prior == "cross_entropy").to(DEVICE) if given else None
    views = [view.to(DEVICE) for view in case.views]
    *terms, grad1, grad2 = loss_by_shards(
        cuda, *views, dictionary, world, temperature=case.temperature, beta=beta, prior=prior, prior_probs=q,
        need_grad=need_grad,
    )  # fmt: skip
    return *(term.cpu() for term in terms), (grad1.cpu(), grad2.cpu()) if need_grad else None


def check_shards(conformance, dictionary, case, settings, world):
    """The loss by ranges against the oracle, in float32 whatever the views' dtype is."""
    on_cpu = dictionary.to("cpu")
    oracle = LossOracle(on_cpu, case)
    for setting in settings:
        loss, _, _, gradients = run_shards(dictionary, case, setting, world)
        check_loss(conformance, LABEL, oracle, setting, loss, gradients, torch.float32)


# ---- accuracy against the oracle -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, f, c, n, world", SHAPES)
def test_loss_and_gradient(kind, f, c, n, world, conformance):
    dictionary = signs_dictionary(kind, f, c, DEVICE)
    for position in range(2 if f < 1000 else 1):
        case = make_case(dictionary.to("cpu"), n, REGIMES[(f + c + position) % 3])
        settings = (("reverse_kl", f % 2 == position, 3.0), ("cross_entropy", f % 2 != position, 0.5))
        check_shards(conformance, dictionary, case, settings, world)


@pytest.mark.parametrize("kind, f", [("hadamard", 200), ("hadamard", 20), ("rademacher", 40)])
def test_logits_of_300(kind, f, conformance):
    dictionary = make_dictionary(kind, f, 400)
    case = make_case(dictionary, 4, "l2 to ±300")
    check_shards(conformance, dictionary, case, (("reverse_kl", False, 1.0), ("cross_entropy", True, 1.0)), 2)


@pytest.mark.parametrize("kind, f", [("hadamard", 100), ("rademacher", 40)])
def test_what_is_left_out_is_noticed(kind, f, conformance, monkeypatch):
    dictionary = make_dictionary(kind, f, 300)
    case = make_case(dictionary, 4, "l2")
    setting = ("reverse_kl", False, 1.0)
    oracle = LossOracle(dictionary, case)

    def noticed():
        loss, _, _, wrong = run_shards(dictionary, case, setting, 3)
        with pytest.raises(AssertionError):
            check_loss(conformance.scratch(), LABEL, oracle, setting, loss, wrong, torch.float32)

    gradients, combine = cuda.Shard.gradients, cuda.Shard.combine
    with monkeypatch.context() as patch:
        patch.setattr(
            cuda.Shard, "gradients", lambda self, scalars: gradients(self, scalars) * (self._dictionary.first_code > 0)
        )
        noticed()
    # Best codes that no range puts back.
    monkeypatch.setattr(cuda.Shard, "combine", lambda self, *known: combine(self, *known[:2], known[2] & False))
    noticed()


@pytest.mark.parametrize("kind, f", [("hadamard", 200), ("hadamard", 20), ("dense", 100)])
def test_rows_aligned_with_their_codes(kind, f, conformance):
    """Best codes of both views the same, two of one range, two of different ranges."""
    dictionary = signs_dictionary(kind, f, 700, DEVICE)
    columns = dictionary.to("cpu").to_dense() / math.sqrt(f)
    case = make_case(dictionary.to("cpu"), 4, "l2")
    case.views = (columns[:, [0, 30, 650, 300]].T.contiguous(), columns[:, [0, 31, 20, 690]].T.contiguous())
    check_shards(conformance, dictionary, case, (("reverse_kl", False, 1.0), ("cross_entropy", True, 1.0)), 3)


@pytest.mark.parametrize("prior", ["reverse_kl", "cross_entropy"])
@pytest.mark.parametrize("kind, f", [("hadamard", 100), ("hadamard", 20), ("rademacher", 40), ("dense", 130)])
def test_ranges_of_several_spans(short_spans, kind, f, prior, conformance):  # noqa: F811
    dictionary = signs_dictionary(kind, f, 1300, DEVICE)
    case = make_case(dictionary.to("cpu"), 2, "l2")
    check_shards(conformance, dictionary, case, ((prior, True, 1.0),), 2)
    h = case.views[0].to(DEVICE)
    mean = mean_assignment_by_shards(cuda, h, dictionary, 2, temperature=case.temperature)
    expected = reference.mean_assignment(case.views[0].double(), dictionary.to("cpu"), temperature=case.temperature)
    assert relative_error(mean.cpu(), expected, 0.0) <= GRADIENT_TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype, conformance):
    dictionary = make_dictionary("hadamard", 100, 300)
    case = make_case(dictionary, 5, "l2", dtype)
    check_shards(conformance, dictionary, case, (("reverse_kl", False, 1.0),), 2)


@pytest.mark.parametrize("kind, f, world", [("hadamard", 200, 3), ("hadamard", 7, 4), ("rademacher", 40, 2),
                                            ("dense", 33, 3)])  # fmt: skip
def test_mean_assignment(kind, f, world):
    dictionary = signs_dictionary(kind, f, 600, DEVICE)
    case = make_case(dictionary.to("cpu"), 6, "l2")
    h = case.views[0].to(DEVICE)
    mean = mean_assignment_by_shards(cuda, h, dictionary, world, temperature=case.temperature)
    expected = reference.mean_assignment(case.views[0].double(), dictionary.to("cpu"), temperature=case.temperature)
    assert mean.dtype == torch.float32 and mean.shape == (600,)
    assert relative_error(mean.cpu(), expected, 0.0) <= GRADIENT_TOLERANCE


# ---- the steps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, f", [("hadamard", 200), ("hadamard", 20), ("rademacher", 40), ("dense", 33)])
def test_what_each_step_returns(kind, f):
    """Best logits and sums of each range, and its part of sum_j p_j ln(c p'_j), the best code's term with its owner."""
    dictionary = signs_dictionary(kind, f, 600, DEVICE)
    weight = dictionary.to("cpu").to_dense().double()
    case = make_case(dictionary.to("cpu"), 5, "l2")
    logits = torch.stack([(view.double() / case.temperature) @ weight for view in case.views])
    p = logits.softmax(2)
    terms = (p * (math.log(600) + p.flip(0).log())).flatten(0, 1)
    ranges, unit = code_ranges(dictionary, 3), cuda.Shard.LOG_UNIT
    made = [cuda.Shard(codes, case.temperature, 2) for codes in ranges]
    found = [[shard.row_sums(view, h.to(DEVICE)) for view, h in enumerate(case.views)] for shard in made]
    best, others = (torch.stack([torch.cat([view[part] for view in shard]) for shard in found]) for part in (0, 1))
    owners = 0
    for rank, (shard, codes) in enumerate(zip(made, ranges, strict=True)):
        columns = slice(codes.first_code, codes.first_code + codes.num_codes)
        part = logits.flatten(0, 1)[:, columns]
        largest = part.max(1).values
        assert torch.allclose(best[rank].cpu() * unit, largest, atol=1e-5)
        assert torch.allclose(others[rank].cpu(), (part - largest[:, None]).exp().sum(1) - 1, rtol=1e-4)
        assert torch.equal(best[rank], best[rank].float().double())
        top, total, mine = merge_row_sums(best, others, rank, unit)
        shard.combine(top, total, mine)
        scalars, _ = shard.code_sums(1.0, "reverse_kl", None, True)
        assert scalars.shape == (cuda.Shard.ROW_SCALARS, 10) and scalars.dtype == torch.float64
        assert torch.allclose(scalars[0].cpu(), terms[:, columns].sum(1), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(scalars[0].cpu(), terms.sum(1), atol=1e-3)
        assert ((scalars[3] != 0) == mine).all() and ((scalars[4] != 0) == mine).all()
        owners += mine.long()
    assert (owners == 1).all()
    assert cuda.Shard.ROW_SCALARS == launch.kernels().ROW_SCALARS


@pytest.mark.parametrize("kind, f", [("hadamard", 200), ("hadamard", 5000), ("rademacher", 40), ("dense", 33)])
@pytest.mark.parametrize("prior", ["reverse_kl", "cross_entropy"])
def test_a_range_whose_codes_are_all_far_below_adds_nothing(kind, f, prior):
    """Were some code taken for the best one, which is elsewhere, its share would be 1."""
    dictionary = signs_dictionary(kind, f, 300, DEVICE)
    shard = cuda.Shard(dictionary, 0.5, 2)
    views = [h.to(DEVICE) for h in embeddings(3, f)]
    best, others = (torch.cat(part) for part in zip(*(shard.row_sums(i, h) for i, h in enumerate(views)), strict=True))
    shard.combine(best + 4096, others * 0, torch.zeros_like(best, dtype=torch.bool))
    scalars, _ = shard.code_sums(1.0, prior, None, True)
    # p underflows; under cross entropy the weights are those of log p less log p̄, whatever p is.
    assert not scalars[[0, 1, 3, 4]].any()
    if prior == "reverse_kl":
        assert not scalars.any() and not shard.gradients(scalars).any()


def test_one_range_gives_the_gradients_of_the_single_call():
    """To the bit: the second pass is the same, and its sums meet in the same order."""
    dictionary = make_dictionary("hadamard", 200, 500)
    views = [h.to(DEVICE) for h in embeddings(4, 200)]
    options = dict(temperature=0.3, beta=2.0, prior="cross_entropy")
    alone = cuda.cplearn_loss(*views, dictionary, prior_probs=None, need_grad=True, **options)
    steps = loss_by_shards(cuda, *views, dictionary, 1, **options)
    assert all(same_bits(one, other.float()) for one, other in zip(alone[3:], steps[3:], strict=True))
    assert all(abs(one - other) <= 1e-6 for one, other in zip(alone[:3], steps[:3], strict=True))


@pytest.mark.parametrize("kind", ["hadamard", "rademacher"])
def test_without_gradients_the_numbers_are_the_same(kind):
    dictionary = make_dictionary(kind, 40, 300)
    case = make_case(dictionary, 5, "tanh")
    *terms, none = run_shards(dictionary, case, ("cross_entropy", True, 0.5), 2, need_grad=False)
    with_gradients = run_shards(dictionary, case, ("cross_entropy", True, 0.5), 2)[:3]
    assert none is None
    assert all(abs(one - other) <= 1e-7 * abs(other) for one, other in zip(terms, with_gradients, strict=True))


@pytest.mark.parametrize("kind", ["hadamard", "rademacher"])
def test_strides_do_not_matter(kind):
    dictionary = make_dictionary(kind, 40, 300)
    views = [h.to(DEVICE) for h in embeddings(5, 40)]
    strided = [views[0].T.contiguous().T, torch.stack([views[1], views[1] + 1], 1)[:, 0]]
    assert not any(h.is_contiguous() for h in strided)
    one, other = (loss_by_shards(cuda, *hs, dictionary, 2, temperature=0.3) for hs in (views, strided))
    assert all(map(same_bits, one, other))


@pytest.mark.parametrize("prior", ["reverse_kl", "cross_entropy"])
@pytest.mark.parametrize("kind, f, bad", [("hadamard", 100, math.nan), ("rademacher", 40, math.inf)])
def test_a_row_that_is_not_finite(kind, f, prior, bad):
    dictionary = make_dictionary(kind, f, 400)
    h1, h2 = (h.to(DEVICE) for h in embeddings(4, f))
    h1[2, 5] = bad
    for codes in code_ranges(dictionary, 3):
        best, others = cuda.Shard(codes, 0.3, 2).row_sums(0, h1)
        assert best.isnan().tolist() == others.isnan().tolist() == [False, False, True, False]
    *terms, grad1, grad2 = loss_by_shards(cuda, h1, h2, dictionary, 3, temperature=0.3, prior=prior)
    assert all(term.isnan() for term in terms)
    assert grad1.isnan().any(dim=1).all() and grad1[2].isnan().all() and grad2[2].isnan().all()
    assert mean_assignment_by_shards(cuda, h1, dictionary, 3, temperature=0.3).isnan().all()


@pytest.mark.parametrize("kind, f", [("hadamard", 520), ("rademacher", 40)])
def test_same_bits_whatever_the_order_of_threads(kind, f):
    dictionary = make_dictionary(kind, f, 2 * f + 300)
    views = [h.to(DEVICE) for h in embeddings(3, f)]
    runs = []
    for order in (0, 1, 2):
        if not ON_GPU:
            emulated.kernels().set_order(order)
        runs.append(loss_by_shards(cuda, *views, dictionary, 2, temperature=0.3))
    if not ON_GPU:
        emulated.kernels().set_order(0)
    for other in runs[1:]:
        assert all(map(same_bits, runs[0], other))


# ---- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, f", [("hadamard", 100), ("hadamard", 8000), ("rademacher", 40)])
def test_working_memory_is_written_before_it_is_read_and_not_overrun(kind, f, monkeypatch):
    """Filled with NaN beforehand, with a mark behind its end and, in emulation, gaps between its arrays."""
    dictionary = make_dictionary(kind, f, 300)
    views = [h.to(DEVICE) for h in embeddings(3, f)]
    expected = loss_by_shards(cuda, *views, dictionary, 2, temperature=0.3)
    mean = mean_assignment_by_shards(cuda, views[0], dictionary, 2, temperature=0.3)
    plain, run, lent = torch.empty, cuda_shard.call, []

    def marked(*shape, dtype, device):
        if dtype is not torch.uint8:
            return plain(*shape, dtype=dtype, device=device).fill_(7 if dtype is torch.int32 else torch.nan)
        lent.append(torch.full((shape[0] + 512,), 255, dtype=dtype, device=device))
        lent[-1][shape[0] :] = 171
        return lent[-1][: shape[0]]

    def checked(*arguments):
        run(*arguments)
        assert (lent[-1][-512:] == 171).all()
        gaps = [] if ON_GPU else emulated.kernels().gaps()
        assert ON_GPU or gaps and all((lent[-1][begin:end] == 255).all() for begin, end in gaps)

    monkeypatch.setattr(torch, "empty", marked)
    monkeypatch.setattr(cuda_shard, "call", checked)
    found = loss_by_shards(cuda, *views, dictionary, 2, temperature=0.3)
    mean_again = mean_assignment_by_shards(cuda, views[0], dictionary, 2, temperature=0.3)
    shards = 1 if f == 8000 else 2  # as many as there are blocks
    assert len(lent) == shards * 6  # two views' rows, sums and gradients; one view's rows and mean
    assert all(map(same_bits, expected, found)) and same_bits(mean, mean_again)


@pytest.mark.parametrize("kind", ["hadamard", "rademacher"])
@pytest.mark.parametrize("f", [20, 2048])
def test_memory_does_not_grow_with_the_number_of_codes(kind, f):
    """Counted, which costs nothing even for 2^30 codes of 2^34."""
    counted = []
    for log2 in (22, 26, 30):
        whole = make_dictionary(kind, f, 1 << 34)
        codes = launch.codes_of(CodeRange(whole, 1 << 33, (1 << 33) + (1 << log2)), DEVICE)
        arguments = (0.5, 1.0, 0, 0, (256, 256, 256), 256, 256, 256)
        device, views = launch.device_of(DEVICE), [(256, 0, f, 1)] * 2
        counted.append(launch.kernels().code_sums(device, 0, codes, views, 64, *arguments))
    assert counted[0] == counted[1] == counted[2] < 256e6, counted


# ---- what a range's codes are ----------------------------------------------------------------------------------------

FAR = [("hadamard", 200, 3 << 32), ("hadamard", 20, (1 << 33) + 32), ("hadamard", 1, (1 << 33) + 5),
       ("rademacher", 40, (1 << 33) + 5), ("rademacher", 130, (1 << 32) - 100)]  # fmt: skip


def far_codes(kind, f, start):
    return CodeRange(make_dictionary(kind, f, 1 << 34, seed=2**63 + 3), start, start + 300)


@pytest.mark.parametrize("kind, f, start", FAR)
def test_codes_beyond_32_bits(kind, f, start):
    """The last range has 2^32 in its middle."""
    codes = far_codes(kind, f, start)
    coordinates = torch.tensor(sorted({0, f // 2, f - 1}))
    h = torch.zeros(len(coordinates), f, device=DEVICE)
    h[torch.arange(len(coordinates)), coordinates] = 1.0
    scores = torch.empty(len(coordinates), 300, device=DEVICE)
    launch.call("scores", [h], codes, 0, 300, scores.data_ptr())
    expected = codes.to_dense()
    assert torch.equal(scores.cpu(), expected[coordinates])
    assert not torch.equal(expected, far_codes(kind, f, start % (1 << 32)).to_dense()) or start < 1 << 32


@pytest.mark.parametrize("kind, f, start", FAR[:2] + FAR[3:])
def test_the_loss_of_a_range_alone(kind, f, start):
    """As if its codes were all there are; but c of the logarithms is the whole dictionary's, which no gradient sees.
    Rows lean on codes: what a best code adds is made from its index."""
    codes = far_codes(kind, f, start)
    matrix = DenseDictionary(codes.to_dense())
    case = make_case(matrix, 4, "l2")
    shard = cuda.Shard(codes, case.temperature, 2)
    rows = [shard.row_sums(view, h.to(DEVICE)) for view, h in enumerate(case.views)]
    best, others = (torch.cat(part) for part in zip(*rows, strict=True))
    shard.combine(best, others, torch.ones_like(best, dtype=torch.bool))
    scalars, prior = shard.code_sums(1.0, "reverse_kl", None, True)
    oracle = LossOracle(matrix, case)
    value, gradient = oracle.loss("reverse_kl", False, 1.0)
    loss = prior / 2 + math.log(1 << 34) - scalars[0].mean()
    assert abs(loss.item() - math.log((1 << 34) / 300) - value) <= 2e-6 * value
    _, tolerance = oracle.tolerances("cuda", torch.float32)
    assert relative_error(shard.gradients(scalars).cpu(), gradient, oracle.floor) <= tolerance
    wrong = scalars.clone()
    wrong[3] = 0
    assert f <= FEW_FEATURES or relative_error(shard.gradients(wrong).cpu(), gradient, oracle.floor) > tolerance


@pytest.mark.parametrize("kind, f", [("hadamard", 100), ("hadamard", 20), ("rademacher", 40), ("dense", 33)])
def test_functions_take_a_range_as_a_dictionary(kind, f):
    """Indices are relative to the range."""
    whole = signs_dictionary(kind, f, 600, DEVICE)
    codes = CodeRange(whole, 256, 550)
    matrix = DenseDictionary(whole.to("cpu").to_dense(256, 550))
    h = make_case(matrix, 4, "l2").views[0]
    on_device, temperature = h.to(DEVICE), default_temperature(f, 294)
    for function in ("projector_softmax", "projector_logsumexp", "expected_code", "mean_assignment"):
        exact = h.double().requires_grad_()
        expected = getattr(reference, function)(exact, matrix, temperature=temperature)
        result = getattr(cuda, function)(on_device, codes, temperature)
        assert relative_error(result.cpu(), expected.detach(), 0.0) <= GRADIENT_TOLERANCE, function
        upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(5))
        (gradient,) = torch.autograd.grad(expected, exact, upstream.double())
        kept = (result,) if function == "projector_softmax" else ()
        if function == "projector_logsumexp":  # as ops makes it
            found = cuda.expected_code(on_device, codes, temperature) * (upstream.to(DEVICE) / temperature)[:, None]
        else:
            found = getattr(cuda, f"{function}_backward")(upstream.to(DEVICE), on_device, *kept, codes, temperature)
        assert relative_error(found.cpu(), gradient, 1e-2) <= GRADIENT_TOLERANCE, function
    picked = torch.tensor([293, 0, 130])
    rows = matrix.to_dense()[:, picked].T.contiguous().to(DEVICE)
    for top_k in (1, 3):
        scores, found = cuda.assign(rows, codes, top_k)
        assert (scores[:, 0] == f).all()
        best = matrix.to_dense().T @ matrix.to_dense()[:, picked]  # equal codes: the first of them
        assert found[:, 0].tolist() == best.argmax(0).tolist()


# ---- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
@pytest.mark.parametrize("kind, f, c", [("hadamard", 2048, 20000), ("hadamard", 128, 1 << 18),
                                        ("rademacher", 384, 20000)])  # fmt: skip
def test_real_sizes_without_waiting_for_the_device(kind, f, c):
    """Against the single call on the same GPU. The first round fills the tables of the ranges."""
    dictionary = make_dictionary(kind, f, c)
    h1, h2 = (h.to(DEVICE) for h in embeddings(200, f))
    temperature = default_temperature(f, c)
    options = dict(temperature=temperature, beta=1.0, prior="reverse_kl")
    for mode in ("default", "error"):
        torch.cuda.set_sync_debug_mode(mode)
        try:
            alone = cuda.cplearn_loss(h1, h2, dictionary, prior_probs=None, need_grad=True, **options)
            steps = loss_by_shards(cuda, h1, h2, dictionary, 3, **options)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert all(abs(one - other) <= 1e-6 * max(abs(one), 1) for one, other in zip(alone[:3], steps[:3], strict=True))
    single, shared = (torch.cat(run[3:]).double() for run in (alone, steps))
    assert (single - shared).norm() <= GRADIENT_TOLERANCE * single.norm()
