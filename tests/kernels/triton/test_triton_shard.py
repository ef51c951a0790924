"""Tests of the Triton backend's Shard: ranges of codes, one after the other, give the loss."""

from __future__ import annotations

import math

import pytest
import shards
import torch
from cases import embeddings, make_dictionary, one_thread, same_bits  # noqa: F401
from oracle import LossOracle, check_loss, make_case, prior_probs, signs_dictionary
from shards import loss_by_shards, mean_assignment_by_shards
from test_triton import DEVICE, short_pieces  # noqa: F401

from cplearn_kernels import DenseDictionary, HadamardDictionary, default_temperature, reference
from cplearn_kernels.backends.triton import functions as triton_backend
from cplearn_kernels.backends.triton.codes import codes_of
from cplearn_kernels.backends.triton.launches import Batch
from cplearn_kernels.distributed.ranges import CodeRange

LABEL = "triton, ranges of codes"
# Blocks transformed, with padding; blocks taken code by code, small ones with equal codes in several ranges among them;
# independent codes of one group of coordinates and of several; codes from memory. No c is a multiple of a block.
SHAPES = [
    ("hadamard", 200, 700, 5, 3), ("hadamard", 300, 900, 3, 2), ("hadamard", 33, 200, 5, 3), ("hadamard", 7, 300, 5, 5),
    ("hadamard", 129, 250, 3, 3), ("rademacher", 70, 301, 5, 3), ("rademacher", 130, 203, 3, 2),
    ("dense", 100, 301, 5, 3), ("dense", 129, 203, 3, 2),
]  # fmt: skip


def run_shards(dictionary, case, setting, world, need_grad=True):
    """(loss, gradients) of one setting by ranges, on the CPU."""
    prior, given, beta = setting
    q = prior_probs(dictionary.num_codes, with_zeros=prior == "cross_entropy").to(DEVICE) if given else None
    views = [view.to(DEVICE) for view in case.views]
    loss, invariance, prior_value, *gradients = loss_by_shards(
        triton_backend, *views, dictionary, world, temperature=case.temperature, beta=beta, prior=prior, prior_probs=q,
        need_grad=need_grad,
    )  # fmt: skip
    terms = [term.cpu() for term in (loss, invariance, prior_value)]
    return *terms, tuple(g.cpu() for g in gradients) if need_grad else None


# ---- accuracy against the oracle -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, f, c, n, world", SHAPES)
def test_loss_and_gradient(kind, f, c, n, world, conformance):
    """129 features of 250 codes are one block for three ranks: two of them have no codes."""
    dictionary = signs_dictionary(kind, f, c, DEVICE)
    on_cpu = dictionary.to("cpu")
    regime = ("l2", "tanh", "l2 to ±300")[(f + world) % 3]
    case = make_case(on_cpu, n, regime)
    oracle = LossOracle(on_cpu, case)
    for setting in (("reverse_kl", f % 2 == 0, 3.0), ("cross_entropy", f % 2 == 1, 0.5)):
        loss, _, _, gradients = run_shards(dictionary, case, setting, world)
        check_loss(conformance, LABEL, oracle, setting, loss, gradients, torch.float32)


@pytest.mark.parametrize("kind, f, world", [("hadamard", 200, 2), ("hadamard", 33, 1), ("rademacher", 40, 2)])
def test_logits_of_300(kind, f, world, conformance):
    dictionary = make_dictionary(kind, f, 400)
    case = make_case(dictionary, 4, "l2 to ±300")
    setting = ("reverse_kl", False, 1.0)
    loss, _, _, gradients = run_shards(dictionary, case, setting, world)
    check_loss(conformance, LABEL, LossOracle(dictionary, case), setting, loss, gradients, torch.float32)


def test_a_range_left_out_is_noticed(conformance, monkeypatch):
    dictionary = make_dictionary("rademacher", 40, 200)
    case = make_case(dictionary, 4, "l2")
    setting = ("reverse_kl", False, 1.0)
    gradients = triton_backend.Shard.gradients
    monkeypatch.setattr(
        triton_backend.Shard, "gradients",
        lambda self, scalars: gradients(self, scalars) * (self._dictionary.first_code > 0),
    )  # fmt: skip
    loss, _, _, wrong = run_shards(dictionary, case, setting, 3)
    with pytest.raises(AssertionError):
        check_loss(conformance.scratch(), LABEL, LossOracle(dictionary, case), setting, loss, wrong, torch.float32)


@pytest.mark.parametrize("kind, f", [("hadamard", 200), ("dense", 100)])
def test_rows_aligned_with_their_codes(kind, f, conformance):
    """Best codes of both views the same, two of one range, two of different ranges."""
    dictionary = signs_dictionary(kind, f, 700, DEVICE)
    on_cpu = dictionary.to("cpu")
    columns = on_cpu.to_dense() / math.sqrt(f)
    case = make_case(on_cpu, 4, "l2")
    case.views = (columns[:, [0, 30, 650, 300]].T.contiguous(), columns[:, [0, 31, 20, 690]].T.contiguous())
    oracle = LossOracle(on_cpu, case)
    for setting in (("reverse_kl", False, 1.0), ("cross_entropy", True, 1.0)):
        loss, invariance, _, gradients = run_shards(dictionary, case, setting, 3)
        check_loss(conformance, LABEL, oracle, setting, loss, gradients, torch.float32)
        assert abs(invariance - oracle.terms["invariance"]) <= 1e-7 * oracle.terms["invariance"]


def test_an_invariance_near_zero_keeps_its_digits():
    """log c less the cross term: a float32 log c alone would be off by up to 5e-7."""
    dictionary = make_dictionary("hadamard", 200, 700)
    case = make_case(dictionary, 3, "l2")
    aligned = (dictionary.to_dense()[:, [3, 400, 699]].T / math.sqrt(200)).contiguous()
    case.views, case.temperature = (aligned, aligned), default_temperature(200, 700)
    expected = LossOracle(dictionary, case).terms["invariance"].item()
    _, invariance, _, _ = run_shards(dictionary, case, ("reverse_kl", False, 1.0), 3, need_grad=False)
    assert 1e-9 < expected < 1e-3
    assert abs(invariance.item() - expected) <= 1e-5 * expected


@pytest.mark.parametrize("kind, f", [("hadamard", 200), ("rademacher", 130), ("dense", 40)])
def test_ranges_of_several_spans(short_pieces, kind, f, conformance):  # noqa: F811
    dictionary = signs_dictionary(kind, f, 1100, DEVICE)
    case = make_case(dictionary.to("cpu"), 2, "l2")
    setting = ("cross_entropy", True, 1.0)
    loss, _, _, gradients = run_shards(dictionary, case, setting, 2)
    check_loss(conformance, LABEL, LossOracle(dictionary.to("cpu"), case), setting, loss, gradients, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype, conformance):
    dictionary = make_dictionary("rademacher", 40, 300)
    case = make_case(dictionary, 5, "l2", dtype)
    setting = ("reverse_kl", False, 1.0)
    loss, _, _, gradients = run_shards(dictionary, case, setting, 2)
    assert all(g.dtype == torch.float64 for g in gradients)
    check_loss(conformance, LABEL, LossOracle(dictionary, case), setting, loss, gradients, torch.float32)


@pytest.mark.parametrize("kind, f, world", [("hadamard", 200, 3), ("rademacher", 40, 2), ("dense", 33, 3)])
def test_mean_assignment(kind, f, world):
    dictionary = signs_dictionary(kind, f, 600, DEVICE)
    case = make_case(dictionary.to("cpu"), 6, "l2")
    result = mean_assignment_by_shards(
        triton_backend, case.views[0].to(DEVICE), dictionary, world, temperature=case.temperature
    )
    expected = reference.mean_assignment(case.views[0].double(), dictionary.to("cpu"), temperature=case.temperature)
    assert result.dtype == torch.float32
    assert float((result.cpu() - expected).norm() / expected.norm()) <= 1e-6


# ---- the steps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, f", [("hadamard", 200), ("rademacher", 40)])
def test_what_each_step_returns(kind, f):
    """Best logits and sums of each range, and its part of sum_j p_j ln(c p'_j), the best code's term with its owner."""
    dictionary = make_dictionary(kind, f, 600)
    case = make_case(dictionary, 5, "l2")
    views = [view.to(DEVICE) for view in case.views]
    logits = torch.stack([(view.double() / case.temperature) @ dictionary.to_dense().double() for view in case.views])
    p = logits.softmax(2)
    terms = (p * (math.log(600) + p.flip(0).log())).flatten(0, 1)
    unit, ranges = triton_backend.Shard.LOG_UNIT, shards.code_ranges(dictionary, 3)
    made = [triton_backend.Shard(codes, case.temperature, 2) for codes in ranges]
    found = [[shard.row_sums(view, h) for view, h in enumerate(views)] for shard in made]
    best, others = (torch.stack([torch.cat([view[part] for view in shard]) for shard in found]) for part in (0, 1))
    owners = 0
    for rank, (shard, codes) in enumerate(zip(made, ranges, strict=True)):
        columns = slice(codes.first_code, codes.first_code + codes.num_codes)
        part = logits.flatten(0, 1)[:, columns]
        largest = part.max(1).values
        assert torch.allclose(best[rank].cpu() * unit, largest, atol=1e-5)
        assert torch.allclose(others[rank].cpu(), (part - largest[:, None]).exp().sum(1) - 1, rtol=1e-4)
        assert torch.equal(best[rank], best[rank].float().double())
        top, total, mine = shards.merge_row_sums(best, others, rank, unit)
        shard.combine(top, total, mine)
        scalars, _ = shard.code_sums(1.0, "reverse_kl", None, True)
        assert scalars.shape == (triton_backend.Shard.ROW_SCALARS, 10) and scalars.dtype == torch.float64
        assert torch.allclose(scalars[0].cpu(), terms[:, columns].sum(1), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(scalars[0].cpu(), terms.sum(1), atol=1e-3)
        assert ((scalars[3] != 0) == mine).all()
        owners += mine.long()
    assert (owners == 1).all()


def test_one_range_is_the_loss_of_one_process(conformance):
    dictionary = make_dictionary("hadamard", 200, 500)
    views = [h.to(DEVICE) for h in embeddings(4, 200)]
    options = dict(temperature=0.3, beta=2.0, prior="cross_entropy")
    alone = triton_backend.cplearn_loss(*views, dictionary, prior_probs=None, need_grad=True, **options)
    shared = loss_by_shards(triton_backend, *views, dictionary, 1, **options)
    for one, other in zip(alone, shared, strict=True):
        assert torch.allclose(one.double(), other.double(), rtol=1e-6, atol=1e-7)


def test_without_gradients_the_numbers_are_the_same():
    dictionary = make_dictionary("rademacher", 40, 300)
    case = make_case(dictionary, 5, "tanh")
    setting = ("cross_entropy", True, 0.5)
    *terms, none = run_shards(dictionary, case, setting, 2, need_grad=False)
    assert none is None
    assert all(map(same_bits, terms, run_shards(dictionary, case, setting, 2)[:3]))


def test_strides_do_not_matter():
    dictionary = make_dictionary("rademacher", 40, 300)
    views = [h.to(DEVICE) for h in embeddings(5, 40)]
    strided = [h.T.contiguous().T for h in views]
    assert not strided[0].is_contiguous()
    one, other = (loss_by_shards(triton_backend, *hs, dictionary, 2, temperature=0.3) for hs in (views, strided))
    assert all(map(same_bits, one, other))


@pytest.mark.parametrize(
    "kind, f, prior, bad", [("hadamard", 200, "reverse_kl", math.nan), ("rademacher", 40, "cross_entropy", math.inf)]
)
def test_a_row_that_is_not_finite(kind, f, prior, bad):
    dictionary = make_dictionary(kind, f, 600)
    h1, h2 = (h.to(DEVICE) for h in embeddings(4, f))
    h1[2, 5] = bad
    best, others = triton_backend.Shard(shards.code_ranges(dictionary, 3)[1], 0.3, 2).row_sums(0, h1)
    assert best.isnan().tolist() == others.isnan().tolist() == [False, False, True, False]
    loss, invariance, prior_value, grad1, grad2 = loss_by_shards(
        triton_backend, h1, h2, dictionary, 3, temperature=0.3, prior=prior
    )
    assert loss.isnan() and invariance.isnan() and prior_value.isnan()
    assert grad1.isnan().all() and grad2[2].isnan().all()


# ---- ranges that begin beyond 2^32 -----------------------------------------------------------------------------------

FAR = [("hadamard", 200, 5 << 32), ("hadamard", 33, (1 << 33) + 64), ("hadamard", 129, (1 << 42) + 512),
       ("rademacher", 70, (1 << 33) + 5), ("rademacher", 129, (1 << 32) - 100)]  # fmt: skip


@pytest.mark.parametrize("kind, f, start", FAR)
def test_codes_beyond_32_bits(kind, f, start):
    """In the tiles of the passes and as the finishing kernels make them; the last range has 2^32 in its middle."""
    codes = CodeRange(make_dictionary(kind, f, 1 << 43, seed=7), start, start + 300)
    expected = codes.to_dense()
    h = torch.zeros(3, f, device=DEVICE)
    coordinates = torch.tensor([0, f // 2, f - 1])
    h[torch.arange(3), coordinates] = 1.0
    batch = Batch([h], codes_of(codes, DEVICE), [1.0])
    scores = torch.empty(3, 300, device=DEVICE)
    batch.probabilities(scores, 0, 300, scores=True)
    assert torch.equal(scores.cpu(), expected[coordinates])
    assert torch.equal(batch.dense_codes(290, 10).cpu(), expected[:, 290:].T)
    near = CodeRange(make_dictionary(kind, f, 1 << 43, seed=7), start % (1 << 32), start % (1 << 32) + 300)
    assert not torch.equal(expected, near.to_dense()) or start < 1 << 32


def test_assign_numbers_codes_from_the_range_on():
    codes = CodeRange(HadamardDictionary(200, 1 << 34), 3 << 32, (3 << 32) + 600)
    picked = torch.tensor([599, 0, 257])
    scores, found = triton_backend.assign(codes.to_dense()[:, picked].T.contiguous().to(DEVICE), codes, 1)
    assert torch.equal(found[:, 0].cpu(), picked) and torch.equal(scores[:, 0].cpu(), torch.full((3,), 200.0))


@pytest.mark.parametrize("kind, f", [("hadamard", 200), ("rademacher", 70)])
def test_loss_of_ranges_beyond_32_bits(kind, f, conformance, monkeypatch):
    """Two far ranges as if there were no other codes: the loss of their matrix, with log c of the whole dictionary."""
    whole, start = make_dictionary(kind, f, 1 << 34), 3 << 32
    ranges = [CodeRange(whole, start, start + 256), CodeRange(whole, start + 256, start + 500)]
    matrix = DenseDictionary(torch.cat([codes.to_dense() for codes in ranges], 1))
    case = make_case(matrix, 5, "l2")
    setting = ("reverse_kl", False, 1.0)
    monkeypatch.setattr(shards, "code_ranges", lambda dictionary, world: ranges)
    loss, _, _, gradients = run_shards(whole, case, setting, 2)
    alone = loss - math.log((1 << 34) / 500)  # the prior holds log(c p̄)
    check_loss(conformance, LABEL, LossOracle(matrix, case), setting, alone, gradients, torch.float32)
