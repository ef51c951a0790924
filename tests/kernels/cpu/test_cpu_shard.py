"""Backend "cpu", a range of codes at a time: together they give the loss, gradients and mean assignment."""

from __future__ import annotations

import functools
import math
import os
import subprocess
import sys

import pytest
import torch
from oracle import (
    GRADIENT_TOLERANCE,
    LARGE_LOGIT_GRADIENT_TOLERANCE,
    REGIMES,
    SETTINGS,
    Case,
    LossOracle,
    check_loss,
    float64_codes,
    make_case,
    prior_probs,
    relative_error,
    signs_dictionary,
)
from shards import loss_by_shards, mean_assignment_by_shards

import cplearn_kernels as cpk
from cplearn_kernels import reference
from cplearn_kernels.backends.cpu import functions as cpu
from cplearn_kernels.distributed.ranges import CodeRange, code_ranges

KINDS = ("hadamard", "rademacher", "dense")
WORLDS = (1, 2, 3, 5, 40)  # 40: more ranks than the Hadamard dictionaries below have blocks
SHAPES = ((7, 213, 15), (33, 700, 5), (128, 1000, 33), (129, 1111, 16), (200, 1500, 3))  # (f, c, rows)
BEYOND = (1 << 33) + (1 << 20)  # a place in a whole dictionary of 2^34 codes, at the edge of a block


@functools.lru_cache(maxsize=4)
def shared(kind, f, c):
    return signs_dictionary(kind, f, c, "cpu")


def run_shards(dictionary, case, setting, world, need_grad=True):
    """(loss, gradients) put together from `world` ranges."""
    prior, given, beta = setting
    q = prior_probs(dictionary.num_codes, with_zeros=prior == "cross_entropy") if given else None
    options = dict(temperature=case.temperature, beta=beta, prior=prior, prior_probs=q, need_grad=need_grad)
    loss, _, _, *gradients = loss_by_shards(cpu, *case.views, dictionary, world, **options)
    return loss, gradients


@pytest.mark.parametrize("f, c, n", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient(kind, f, c, n, conformance):
    dictionary = shared(kind, f, c)
    for position, regime in enumerate(REGIMES):
        case = make_case(dictionary, n, regime)
        oracle = LossOracle(dictionary, case)
        for i, setting in enumerate(SETTINGS):
            answer = run_shards(dictionary, case, setting, WORLDS[(i + position) % len(WORLDS)])
            check_loss(conformance, "cpu, shards", oracle, setting, *answer)
        for target in cpu.targets()[1:]:
            setting = SETTINGS[(position * 5 + f + n) % len(SETTINGS)]
            with cpu.use_target(target):
                answer = run_shards(dictionary, case, setting, 3)
            check_loss(conformance, f"cpu/{target}, shards", oracle, setting, *answer)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_and_strides(kind, dtype, conformance):
    """Gradients come in float32, unrounded; views are columns of a larger array."""
    dictionary = shared(kind, 129, 1111)
    case = make_case(dictionary, 16, "l2", dtype)
    oracle = LossOracle(dictionary, case)
    case.views = tuple(torch.stack([view.T, view.T], dim=2)[:, :, 1].T for view in case.views)
    assert not any(view.is_contiguous() for view in case.views)
    loss, gradients = run_shards(dictionary, case, SETTINGS[2], 3)
    check_loss(conformance, "cpu, shards", oracle, SETTINGS[2], loss, gradients, torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_views_aligned_with_codes_of_other_ranges(kind, conformance):
    """Best codes of a row's two views: the same code, two of one range, the first and the last of all."""
    dictionary = shared(kind, 128, 1000)
    codes = torch.tensor([[0, 0], [999, 999], [3, 5], [0, 999], [999, 0], [500, 1], [130, 400]])
    views = tuple((float64_codes(dictionary)[:, column].T / math.sqrt(128)).float() for column in codes.T)
    for temperature in (cpk.default_temperature(128, 1000), math.sqrt(128) / 300):
        case = Case(views, temperature)
        oracle = LossOracle(dictionary, case)
        for i, setting in enumerate(SETTINGS):
            answer = run_shards(dictionary, case, setting, WORLDS[i % 4])
            check_loss(conformance, "cpu, shards", oracle, setting, *answer)


def test_prior_probs_that_leave_ranges_empty(conformance):
    """Cross entropy with all of q in one range: the others give nothing to the prior."""
    dictionary = shared("hadamard", 33, 700)
    case = make_case(dictionary, 5, "l2")
    q = torch.zeros(700)
    q[3:30] = 1 / 27
    views = [view.double().requires_grad_() for view in case.views]
    options = dict(temperature=case.temperature, beta=0.5, prior="cross_entropy", prior_probs=q)
    expected = reference.cplearn_loss(*views, dictionary, **options)
    gradient = torch.cat(torch.autograd.grad(expected, views))
    loss, _, _, *gradients = loss_by_shards(cpu, *case.views, dictionary, 5, **options)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert relative_error(torch.cat(gradients), gradient, 0) < GRADIENT_TOLERANCE


@pytest.mark.parametrize("f, c, n", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_mean_assignment(kind, f, c, n):
    dictionary = shared(kind, f, c)
    for regime in REGIMES:
        case = make_case(dictionary, n, regime)
        h, options = case.views[0], dict(temperature=case.temperature)
        expected = reference.mean_assignment(h.double(), dictionary, **options)
        for world in WORLDS:
            mean = mean_assignment_by_shards(cpu, h, dictionary, world, **options)
            assert mean.dtype == torch.float32 and mean.shape == (c,)
            assert relative_error(mean, expected, 0) < LARGE_LOGIT_GRADIENT_TOLERANCE, (regime, world)


def answers_of_range(h, codes):
    """What the functions of one batch say of a range, by name."""
    return {
        "logits": torch.zeros(len(h), codes.num_codes).scatter(1, *cpu.assign(h, codes, codes.num_codes)[::-1]),
        "softmax": cpu.projector_softmax(h, codes, 0.7),
        "logsumexp": cpu.projector_logsumexp(h, codes, 0.7),
        "expected code": cpu.expected_code(h, codes, 0.7),
        "gradient": cpu.expected_code_backward(h * 3, h, codes, 0.7),
        "mean": cpu.mean_assignment(h, codes, 0.7),
    }


@pytest.mark.parametrize("f", (7, 33, 128, 300))
@pytest.mark.parametrize("kind", KINDS)
def test_functions_of_a_range(kind, f):
    """The same answers for a range, beyond 2^32 if it is generated, as for the matrix of its codes."""
    whole = signs_dictionary(kind, f, 1000, "cpu") if kind == "dense" else signs_dictionary(kind, f, 1 << 34, "cpu")
    block = whole.block_size
    for start, length in ((512, 301), (512, 31), (0, 301)) if kind == "dense" else ((BEYOND, 301), (block, 301)):
        codes = CodeRange(whole, start, start + length)
        matrix = cpk.DenseDictionary(codes.to_dense())
        h = torch.randn(5, f, generator=torch.Generator().manual_seed(f)) * 2 / math.sqrt(f)
        given, expected = answers_of_range(h, codes), answers_of_range(h, matrix)
        for name in given:
            assert relative_error(given[name], expected[name].double(), 0) < GRADIENT_TOLERANCE, (name, start)
        logits = h.double() @ matrix.weight.double()
        assert relative_error(given["logits"], logits, 0) < GRADIENT_TOLERANCE
    other = CodeRange(whole, start + block, start + block + length)
    assert relative_error(answers_of_range(h, other)["logits"], logits, 0) > 0.1


@pytest.mark.parametrize("f", (33, 128))
@pytest.mark.parametrize("kind", ("hadamard", "rademacher"))
def test_steps_of_a_range_beyond_32_bits(kind, f, conformance):
    """A range alone, as if there were no other codes: its loss and gradients, but for the whole's c in log(c p)."""
    codes = CodeRange(signs_dictionary(kind, f, 1 << 34, "cpu"), BEYOND, BEYOND + 777)
    matrix = cpk.DenseDictionary(codes.to_dense())
    case = make_case(matrix, 9, "l2")
    shard = cpu.Shard(codes, case.temperature, 2)
    found = [shard.row_sums(view, h) for view, h in enumerate(case.views)]
    shard.combine(*(torch.cat(part) for part in zip(*found, strict=True)), torch.ones(18, dtype=torch.bool))
    scalars, prior = shard.code_sums(1.0, "reverse_kl", None, True)
    constant = math.log(codes.total_codes / codes.num_codes)
    loss = prior / 2 - constant + math.log(codes.total_codes) - scalars[0].mean()
    oracle, gradients = LossOracle(matrix, case), shard.gradients(scalars).chunk(2)
    check_loss(conformance, "cpu, shards", oracle, ("reverse_kl", False, 1.0), loss, gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_row_sums(kind):
    """The best logit is a float32, log-sum-exp follows, and codes of different ranges do not mix."""
    whole = shared(kind, 33, 700)
    case = make_case(whole, 5, "l2")
    for codes in code_ranges(whole, 3):
        best, others = cpu.Shard(codes, case.temperature, 2).row_sums(1, case.views[1])
        assert best.dtype == others.dtype == torch.float64
        assert torch.equal(best.float().double(), best)
        logits = reference.logits(case.views[1].double(), codes, temperature=case.temperature)
        assert torch.allclose(best * cpu.Shard.LOG_UNIT, logits.max(1).values, rtol=1e-6)
        lse = best * cpu.Shard.LOG_UNIT + torch.log1p(others)
        assert torch.allclose(lse, logits.logsumexp(1), rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", (math.nan, math.inf, -math.inf))
def test_rows_that_are_not_finite(bad, kind):
    dictionary = shared(kind, 33, 700)
    case = make_case(dictionary, 5, "l2")
    case.views[1][2, 7] = bad
    best, others = cpu.Shard(dictionary, case.temperature, 2).row_sums(0, case.views[1])
    for part in (best, others):
        assert part.isnan().tolist() == [False, False, True, False, False]
    for prior in ("reverse_kl", "cross_entropy"):
        loss, gradients = run_shards(dictionary, case, (prior, True, 1.0), 3)
        assert loss.isnan() and all(gradient.isnan().all() for gradient in gradients)
        assert run_shards(dictionary, case, (prior, True, 1.0), 3, need_grad=False)[0].isnan()
    assert mean_assignment_by_shards(cpu, case.views[1], dictionary, 3, temperature=0.3).isnan().all()


def test_same_bits_with_one_and_two_threads():
    threads = torch.get_num_threads()
    for kind, (f, c, n), world in ((KINDS[i % 3], shape, WORLDS[i % 4]) for i, shape in enumerate(SHAPES)):
        dictionary = shared(kind, f, c)
        case = make_case(dictionary, n, "l2")
        answers = []
        for count in (1, 2):
            torch.set_num_threads(count)
            loss, gradients = run_shards(dictionary, case, SETTINGS[f % len(SETTINGS)], world)
            mean = mean_assignment_by_shards(cpu, case.views[0], dictionary, world, temperature=case.temperature)
            answers.append((loss, *gradients, mean))
        torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(*answers, strict=True)), (kind, f, world)


def test_loss_without_gradients():
    dictionary = shared("rademacher", 129, 1111)
    case = make_case(dictionary, 16, "l2")
    for setting in SETTINGS[::3]:
        loss, nothing = run_shards(dictionary, case, setting, 3, need_grad=False)
        assert nothing == [None, None] and torch.equal(loss, run_shards(dictionary, case, setting, 3)[0])


class ProudShard(cpu.Shard):
    """Takes each range's best code for the best of all."""

    def combine(self, best, others, mine):
        super().combine(best, others, torch.ones_like(mine))


class ForgetfulShard(cpu.Shard):
    """Forgets whose best code it has."""

    def combine(self, best, others, mine):
        super().combine(best, others, torch.zeros_like(mine))


@pytest.mark.parametrize("wrong", (ProudShard, ForgetfulShard))
def test_wrong_answers_fail(wrong, conformance, monkeypatch):
    dictionary = shared("hadamard", 128, 1000)
    case = make_case(dictionary, 33, "l2")
    oracle = LossOracle(dictionary, case)
    monkeypatch.setattr(cpu, "Shard", wrong)
    answer = run_shards(dictionary, case, SETTINGS[2], 3)
    with pytest.raises(AssertionError):
        check_loss(conformance.scratch(), "wrong", oracle, SETTINGS[2], *answer)


INTERRUPTED = """
import signal
import torch
from cplearn_kernels import RademacherDictionary
from cplearn_kernels.backends.cpu import functions as cpu
from cplearn_kernels.distributed.ranges import CodeRange

signal.signal(signal.SIGALRM, signal.default_int_handler)  # as Ctrl-C, but when the call has begun
shard = cpu.Shard(CodeRange(RademacherDictionary(64, 1 << 36), 1 << 35, 1 << 36), 0.3, 2)  # would take hours
h = torch.nn.functional.normalize(torch.randn(4, 64), dim=1)
shard._views, shard._found = [h, h], [torch.zeros(4, dtype=torch.int64)] * 2  # as if row_sums had come to its end
shard.combine(torch.full((8,), 30.0).double(), torch.ones(8).double(), torch.zeros(8, dtype=torch.bool))
for step in (lambda: shard.row_sums(0, h), lambda: shard.code_sums(1.0, "reverse_kl", None, True)):
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        step()
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.skipif(os.name != "posix", reason="uses a timer's signal")
def test_steps_can_be_interrupted():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=120)
    assert done.stdout == "interrupted\n" * 2, done.stderr
