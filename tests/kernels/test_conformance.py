"""The conformance suite: every backend, function, dictionary, prior and dtype against the float64 oracle.

The only place where accuracy is tested; its worst errors are printed as a table at the end of the run.
"""

import functools
import itertools
import math
import pathlib

import oracle as answers
import pytest
import torch
from oracle import REGIMES, SETTINGS, LossOracle, RowOracle, check_loss, make_case, run_loss
from other_blas import other_blas
from tiers import slow

import cplearn_kernels as cpk
from cplearn_kernels import reference
from cplearn_kernels.backends.cpu import functions as cpu

FEATURES = (1, 2, 7, 100, 128, 384, 2048)
CODES = (1, 3, 1000, 16384, 16385)
ROWS = (1, 2, 15, 64, 257)
HALVES = (torch.bfloat16, torch.float16)
ROW_FUNCTIONS = ("projector_softmax", "projector_logsumexp", "expected_code", "mean_assignment")


def dense(f, c):
    weight = torch.randn(f, c, generator=torch.Generator().manual_seed(3))
    return cpk.DenseDictionary(weight * math.sqrt(f) / weight.norm(dim=0))


OTHER_DICTIONARIES = {
    "rademacher": lambda f, c: cpk.RademacherDictionary(f, c, seed=2),
    "dense ±1": lambda f, c: cpk.DenseDictionary(cpk.RademacherDictionary(f, c, seed=5).to_dense()),
    "dense": dense,
}


@pytest.fixture(scope="module", autouse=True)
def answers_folder(pytestconfig):
    """Lets runs over several BLAS paths share the oracle's answers."""
    folder = pytestconfig.getoption("--oracle-answers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "ANSWERS", folder and pathlib.Path(folder))
        yield


@pytest.fixture(scope="module")
def backends(pytestconfig):
    """The backends that are held against the oracle, by name."""
    return pytestconfig.getoption("--conformance-backends").split(",")


@functools.lru_cache(maxsize=2)
def shared(make, *arguments):
    """`make(*arguments)`: one dictionary for all tests in a row, so that its float64 codes are made once."""
    return make(*arguments)


def slow_if_large(f, c, n):
    """A shape; marked slow where its oracle and the settings of a loss take a second and more."""
    return slow(f, c, n) if n * c * (f + 64) > 6 * 10**6 else pytest.param(f, c, n)


def shapes(rows):
    """All features and codes with `rows`."""
    return list(itertools.starmap(slow_if_large, itertools.product(FEATURES, CODES, rows)))


def affordable(backend, f, c, n, position):
    """The settings a backend runs at this shape: all of them, or two in turn where a call costs seconds."""
    if n * c * (20 if backend == "cpu" else f + 64) < 5 * 10**7:
        return SETTINGS
    return [SETTINGS[(position * 5 + k * 7) % len(SETTINGS)] for k in range(2)]


@pytest.mark.parametrize("f, c, n", shapes(ROWS))
def test_loss_and_gradient(f, c, n, backends, conformance):
    dictionary = shared(cpk.HadamardDictionary, f, c, f + c)
    for position, regime in enumerate(REGIMES):
        case = make_case(dictionary, n, regime)
        oracle = LossOracle(dictionary, case)
        for backend in backends:
            for setting in affordable(backend, f, c, n, position + f + c + n):
                loss, gradients = run_loss(dictionary, case, setting, backend)
                check_loss(conformance, backend, oracle, setting, loss, gradients)
        # The other instruction sets, one setting each, in turn.
        setting = SETTINGS[(position * 5 + f + c + n) % len(SETTINGS)]
        for target in cpu.targets()[1:] if "cpu" in backends else ():
            with cpu.use_target(target):
                loss, gradients = run_loss(dictionary, case, setting, "cpu")
            check_loss(conformance, f"cpu/{target}", oracle, setting, loss, gradients)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("f, c, n", shapes((2, 64)))
def test_loss_of_half_precision_inputs(f, c, n, dtype, backends, conformance):
    dictionary = shared(cpk.HadamardDictionary, f, c, 1)
    for position, regime in enumerate(REGIMES):
        case = make_case(dictionary, n, regime, dtype)
        oracle = LossOracle(dictionary, case)
        for backend in backends:
            setting = SETTINGS[(position * 5 + f + c + n) % len(SETTINGS)]
            loss, gradients = run_loss(dictionary, case, setting, backend)
            check_loss(conformance, backend, oracle, setting, loss, gradients, dtype)


@pytest.mark.parametrize("f, c, n", [
    slow_if_large(f, c, n)
    for f, c in [(1, 3), (7, 1000), (128, 5000), (384, 1000), (2048, 600)] for n in (1, 15, 64)
])  # fmt: skip
@pytest.mark.parametrize("kind", OTHER_DICTIONARIES)
def test_loss_with_the_other_dictionaries(kind, f, c, n, backends, conformance):
    dictionary = shared(OTHER_DICTIONARIES[kind], f, c)
    for position, regime in enumerate(REGIMES):
        case = make_case(dictionary, n, regime)
        oracle = LossOracle(dictionary, case)
        for backend in backends:
            if backend == "cpu" and kind == "dense":
                continue
            for setting in SETTINGS:
                check_loss(conformance, backend, oracle, setting, *run_loss(dictionary, case, setting, backend))
        if kind == "dense" or "cpu" not in backends:
            continue
        for target in cpu.targets()[1:]:
            setting = SETTINGS[(position * 5 + f + c + n) % len(SETTINGS)]
            with cpu.use_target(target):
                answer = run_loss(dictionary, case, setting, "cpu")
            check_loss(conformance, f"cpu/{target}", oracle, setting, *answer)


def test_same_bits_with_one_and_two_threads():
    threads = torch.get_num_threads()
    for f, c, n in itertools.product(FEATURES, (3, 1000, 16385), ROWS):
        dictionary = shared(cpk.HadamardDictionary, f, c)
        case = make_case(dictionary, n, "l2")
        setting = SETTINGS[(f + c + n) % len(SETTINGS)]
        answers = []
        for count in (1, 2):
            torch.set_num_threads(count)
            answers.append(run_loss(dictionary, case, setting, "cpu"))
        torch.set_num_threads(threads)
        (loss_1, gradients_1), (loss_2, gradients_2) = answers
        assert torch.equal(loss_1, loss_2), (f, c, n)
        assert all(torch.equal(a, b) for a, b in zip(gradients_1, gradients_2, strict=True)), (f, c, n)


@pytest.mark.parametrize("dtype", (torch.float32, *HALVES), ids=str)
@pytest.mark.parametrize("function", ROW_FUNCTIONS)
@pytest.mark.parametrize("f, c, n", [(1, 1, 1), (1, 3, 15), (7, 1000, 2), (100, 1000, 64), (128, 16385, 15),
                                     (384, 3, 257), slow(2048, 5000, 15)])  # fmt: skip
def test_row_functions(f, c, n, function, dtype, backends, conformance):
    for kind, regime in itertools.product((cpk.HadamardDictionary, cpk.RademacherDictionary), REGIMES):
        dictionary = shared(kind, f, c, 4)
        oracle = RowOracle(function, dictionary, n, regime, dtype)
        for backend in backends:
            oracle.check(conformance, backend, dictionary)


# Odd seeds shuffle the terms of a sum.
@pytest.mark.parametrize("seed", (1, *map(slow, (0, 2, 3, 4, 5, 6, 7))))
def test_half_of_every_tolerance_is_in_hand_whatever_the_blas(seed, conformance):
    label, half = "torch, any BLAS", {"share": 0.5}
    usual = tuple(zip(REGIMES, SETTINGS[seed::3], strict=False))
    # Three codes of equal weight: the prior alone is a small difference.
    prior_alone = (("l2", ("reverse_kl", False, 0.0)), ("l2", ("cross_entropy", False, 0.0)))
    shapes_and_settings = (((128, 1000, 64), usual), ((384, 1000, 15), usual), ((2048, 3, 64), prior_alone))
    for kind, (shape, settings) in itertools.product((cpk.HadamardDictionary, dense), shapes_and_settings):
        f, c, n = shape
        dictionary = shared(kind, f, c)
        for regime, setting in settings:
            case = make_case(dictionary, n, regime)
            with other_blas(seed):
                answer = run_loss(dictionary, case, setting, "torch")
            check_loss(conformance, label, LossOracle(dictionary, case), setting, *answer, **half)
    for function, (f, c, n) in itertools.product(ROW_FUNCTIONS, ((100, 1000, 64), (2048, 5000, 15))):
        dictionary = shared(cpk.HadamardDictionary, f, c, 4)
        oracle = RowOracle(function, dictionary, n, "l2")
        with other_blas(seed):
            oracle.check(conformance, "torch", dictionary, label=label, **half)


@pytest.mark.parametrize("backend", ("cpu", "torch"))
@pytest.mark.parametrize("f, c, n, top_k", [(1, 3, 2, 3), (7, 1000, 15, 5), (128, 16385, 64, 1), (2048, 3, 257, 2),
                                            (384, 5000, 15, 100)])  # fmt: skip
@pytest.mark.parametrize("kind", (cpk.HadamardDictionary, cpk.RademacherDictionary))
def test_assign(kind, f, c, n, top_k, backend):
    dictionary = kind(f, c, seed=6)
    h = make_case(dictionary, n, "l2").views[0]
    scores, codes = cpk.assign(h, dictionary, top_k=top_k, backend=backend)
    all_scores = reference.logits(h.double(), dictionary, temperature=1.0)
    best = all_scores.topk(top_k, dim=1).values
    # The a-priori bound of a float32 sum: its depth (log2 f butterflies, f terms of a product) times 2^-24 sum |h_k|.
    depth = math.log2(f) + 3 if backend == "cpu" and kind is cpk.HadamardDictionary else f
    bound = (depth * 2.0**-24 * h.double().abs().sum(dim=1, keepdim=True)).expand_as(best)
    assert ((scores.double() - best).abs() <= bound).all()
    assert ((all_scores.gather(1, codes) - best).abs() <= 2 * bound).all()
    assert all(row.unique().numel() == top_k for row in codes)


def test_equal_scores_come_by_index():
    dictionary = cpk.HadamardDictionary(1, 1000, seed=0)  # f = 1: all codes are +1 or -1, ties everywhere
    for backend in ("reference", "cpu", "torch"):
        _, codes = cpk.assign(torch.tensor([[2.0], [-3.0]]), dictionary, top_k=20, backend=backend)
        signs = dictionary.to_dense()[0]
        assert codes[0].tolist() == torch.nonzero(signs > 0)[:20, 0].tolist(), backend
        assert codes[1].tolist() == torch.nonzero(signs < 0)[:20, 0].tolist(), backend


def wrong_answers(loss, gradients):
    first, second = gradients
    yield "zero gradient", loss, (torch.zeros_like(first), torch.zeros_like(second))
    yield "swapped sign", loss, (-first, -second)
    yield "swapped views", loss, (second, first)
    yield "stopped target", loss, (first, second * 0.5)
    yield "gradient off by 2e-5", loss, (first * (1 + 2e-5), second * (1 + 2e-5))
    yield "loss off by 2e-6", loss * (1 + 2e-6), gradients
    yield "NaN", loss * torch.nan, gradients
    for dtype, off in ((torch.bfloat16, 1e-3), (torch.float16, 1e-4)):
        # Less than the rounding to this type, which only changes entries near the middle between two numbers.
        yield f"{dtype} of a gradient that is off", loss, tuple((g * (1 + off)).to(dtype) for g in gradients)


def test_wrong_answers_fail(conformance):
    dictionary = cpk.HadamardDictionary(100, 1000)
    case = make_case(dictionary, 15, "l2")
    oracle, setting = LossOracle(dictionary, case), ("reverse_kl", False, 1.0)
    loss, gradients = run_loss(dictionary, case, setting, "reference")
    for name, wrong_loss, wrong_gradients in wrong_answers(loss.double(), gradients):
        with pytest.raises(AssertionError):
            check_loss(conformance.scratch(), name, oracle, setting, wrong_loss, wrong_gradients)


def test_oracle_is_the_reference():
    dictionary = cpk.HadamardDictionary(7, 50)
    case = make_case(dictionary, 5, "l2", torch.float64)
    oracle = LossOracle(dictionary, case)
    for setting in SETTINGS:
        assert max(oracle.errors(*setting, *run_loss(dictionary, case, setting, "reference"))) < 1e-12


@pytest.mark.parametrize("backend", ("cpu", "torch"))
@pytest.mark.parametrize("kind", (cpk.HadamardDictionary, cpk.RademacherDictionary))
def test_finite_for_extreme_inputs(kind, backend):
    dictionary = kind(100, 1000)
    case = make_case(dictionary, 15, "l2")
    for scale, prior in itertools.product((0.0, 1e-30, 1e4, 1e12), ("reverse_kl", "cross_entropy")):
        views = [(view * scale).requires_grad_() for view in case.views]
        loss = cpk.cplearn_loss(*views, dictionary, temperature=1.0, prior=prior, backend=backend)
        gradients = torch.autograd.grad(loss, views)
        assert torch.isfinite(loss) and all(torch.isfinite(g).all() for g in gradients), (scale, prior)
