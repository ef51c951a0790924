"""The parts of the benchmarks: formulas, accuracy, timer, targets, memory probe."""

from __future__ import annotations

import gc
import itertools
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import cplearn_kernels as cpk
from bench import memory, timing
from bench.accuracy import FORMULA_LIMIT, LIBRARY_LIMIT, compare
from bench.cases import ALL, CASES, CHUNKED, FUNCTION_CASES, LIBRARY, ONE_THREAD, TITLES, Case, case_named
from bench.formulas import authors_loss, tidy_loss
from bench.implementations import Problem, build_loss, forward_backward, function_call
from bench.table import duration, megabytes
from bench.targets import Memory, Rate, Speed, TimePerCode, missed, show

CASE = Case(5, 7, 33)


# ---- formulas and accuracy ---------------------------------------------------------------------------------------


def _embeddings(n: int, f: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    h = torch.randn(2, n, f, generator=generator, dtype=torch.float64)
    return tuple(view.requires_grad_() for view in torch.nn.functional.normalize(h, dim=2))


def _loss_and_gradients(function, h1, h2):
    value = function(h1, h2)
    return value.detach(), *torch.autograd.grad(value, (h1, h2))


@pytest.mark.parametrize("formula", [authors_loss, tidy_loss])
@pytest.mark.parametrize("beta", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("n, f, c", [(1, 1, 3), (6, 7, 100), (33, 32, 257)])
def test_formulas_agree_with_the_oracle(formula, beta, n, f, c):
    """In float64 all three differ by rounding only: some thousand additions of numbers of order 10."""
    dictionary = cpk.HadamardDictionary(num_features=f, num_codes=c, seed=1)
    weight = dictionary.to_dense(dtype=torch.float64)
    h1, h2 = _embeddings(n, f)

    def exact(a, b):
        return cpk.reference.cplearn_loss(a, b, dictionary, temperature=0.4, beta=beta)

    expected = _loss_and_gradients(exact, h1, h2)
    got = _loss_and_gradients(lambda a, b: formula(a, b, weight, 0.4, beta), h1, h2)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


class _CountSoftmax(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = {"_softmax": 0, "_log_softmax": 0}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.calls:
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("formula, softmax, log_softmax", [(authors_loss, 8, 0), (tidy_loss, 0, 2)])
def test_number_of_softmax_evaluations(formula, softmax, log_softmax):
    h1, h2 = _embeddings(3, 4)
    with _CountSoftmax() as counter:
        formula(h1, h2, torch.ones(4, 5, dtype=torch.float64), 1.0)
    assert counter.calls == {"_softmax": softmax, "_log_softmax": log_softmax}


def test_only_the_tidy_formula_survives_an_underflow():
    h = torch.tensor([[1.0, 0.0]])
    weight = torch.tensor([[1.0, -1.0], [1.0, 1.0]])
    assert authors_loss(h, h, weight, 1e-3).isnan()
    assert tidy_loss(h, h, weight, 1e-3).isfinite()


def test_accuracy_sees_wrong_answers():
    problem = Problem(CASE)

    def tidy(a, b):
        return tidy_loss(a, b, problem.weight, problem.temperature)

    right = _loss_and_gradients(tidy, problem.h1, problem.h2)
    expected = tuple(part.double() for part in right)
    assert compare(right, expected, problem.temperature).within(LIBRARY_LIMIT)
    for wrong in (
        (right[0] * 1.001, *right[1:]),
        (right[0], right[2], right[1]),
        (right[0], torch.zeros_like(right[1]), right[2]),
        (right[0] * float("nan"), *right[1:]),
    ):
        assert not compare(wrong, expected, problem.temperature).within(FORMULA_LIMIT)


def test_every_implementation_can_be_built_and_agrees():
    problem = Problem(CASE)
    losses = [build_loss(name, problem, "reference") for name in ALL if name != "compiled"]
    values = [forward_backward(loss, problem)[0] for loss in losses]
    torch.testing.assert_close(values, [values[0]] * 4, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="unknown implementation 'tdy'"):
        build_loss("tdy", problem, "reference")


@pytest.mark.parametrize("function", sorted({case.function for case in FUNCTION_CASES}))
def test_functions_of_one_batch_are_those_of_the_reference(function):
    case = Case(5, 7, 33, function=function)
    exact = function_call(LIBRARY, Problem(case, torch.float64), "reference")()
    got = function_call(CHUNKED, Problem(case, torch.float64), "reference")()  # backend torch
    assert len(got) == (1 if function in ("assign", "loss_alone") else 2)
    torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-9)
    assert all(part.abs().max() > 1e-3 for part in got)


# ---- timer -------------------------------------------------------------------------------------------------------


class FakeClock:
    """A clock that only the fake calls move."""

    def __init__(self):
        self.now = 0.0
        self.log = []

    def __call__(self):
        return self.now

    def call(self, name, durations):
        source = iter(durations)

        def run():
            self.now += next(source)
            self.log.append(name)

        return run


def test_alternating_timer_on_a_fake_clock():
    """Warm-up times are not reported, turns alternate in direction, short calls are repeated within a turn."""
    clock = FakeClock()
    calls = {
        "slow": clock.call("slow", [50.0, 2.0, 2.0, 3.0, 4.0]),
        "fast": clock.call("fast", itertools.chain([9.0], itertools.repeat(0.25))),
    }
    seconds = timing.alternate(calls, 3, turn_seconds=0.5, clock=clock)
    assert seconds == {"slow": [2.0, 3.0, 4.0], "fast": [0.25, 0.25, 0.25]}
    warm_up, turns = clock.log[:4], clock.log[4:]
    assert warm_up == ["slow", "slow", "fast", "fast"]
    assert turns == ["slow", "fast", "fast", "fast", "fast", "slow", "slow", "fast", "fast"]
    with pytest.raises(ValueError, match="rounds = 0"):
        timing.alternate(calls, 0)


def test_no_garbage_is_collected_while_the_clock_runs():
    states = []
    timing.alternate({"a": lambda: states.append(gc.isenabled())}, 2, repeats={"a": 1})
    assert states == [False, False] and gc.isenabled()


def test_ratios_cancel_what_slows_both():
    disturbance = [1.0, 5.0, 1.5, 1.0, 2.0]
    slow, fast = [12 * d for d in disturbance], [3 * d for d in disturbance]
    assert timing.spread(timing.ratios(slow, fast)) == {"median": 4, "q1": 4, "q3": 4, "min": 4, "max": 4}
    with pytest.raises(ValueError, match="2 rounds against 1"):
        timing.ratios([1.0, 2.0], [1.0])


def test_spread():
    assert timing.spread([5.0, 1.0, 4.0, 2.0, 3.0]) == {"median": 3.0, "q1": 2.0, "q3": 4.0, "min": 1.0, "max": 5.0}
    assert timing.spread([2.5]) == dict.fromkeys(["median", "q1", "q3", "min", "max"], 2.5)


# ---- cases and targets -------------------------------------------------------------------------------------------


def test_cases_are_distinct_and_their_targets_can_be_judged():
    every = (*CASES, *FUNCTION_CASES)
    assert len({case.name for case in every}) == len({case.shrunk().name for case in every}) == len(every)
    for case in every:
        assert case.implementations[0] == LIBRARY and set(case.implementations) <= set(TITLES)
        against = {target.against for target in case.targets if isinstance(target, Speed)}
        assert against <= set(case.implementations) - {LIBRARY}
        assert case_named(case.name) is case
        assert not (case.full_only and (case.targets or case.memory))
        assert case.memory is None or case.memory.baseline is None or case_named(case.memory.baseline)
    with pytest.raises(ValueError, match="unknown case 'hadamard'"):
        case_named("hadamard")


SECONDS = {LIBRARY: [0.01, 0.01, 0.02], "eager": [0.13, 0.12, 0.22], "tidy": [0.02, 0.02, 0.04]}


@pytest.mark.parametrize("target, measured, met", [
    (Speed("eager", 12.0), 12.0, True), (Speed("eager", 12.1), 12.0, False), (Speed("tidy", 3.0), 2.0, False),
    (Rate(2.0e8), 2.097152e8, True), (Rate(2.2e8), 2.097152e8, False),
])  # fmt: skip
def test_targets_on_time_are_judged_by_the_median_of_the_rounds(target, measured, met):
    """2 * 64 * 16384 logits in 10 ms; ratios 13, 12 and 11, not 130 ms / 10 ms."""
    verdict = target.judge(SECONDS, Case(64, 128, 1 << 14).logits)
    assert verdict["measured"] == pytest.approx(measured) and verdict["met"] is met
    assert (missed([verdict]) == "") is met
    assert verdict["spread"][0] <= verdict["measured"] <= verdict["spread"][1]


def test_a_target_against_what_was_not_measured_is_not_judged():
    assert Speed(ONE_THREAD, 1.0).judge(SECONDS, 1) is None


@pytest.mark.parametrize("limit, met", [(4.1, True), (4.0, False)])
def test_a_target_on_memory(limit, met):
    """The growth during the call, or how much higher the peak is than the baseline's."""
    found = {"peak_bytes": 9_000_000, "growth_bytes": 4_000_000}
    assert Memory(limit).judge(found)["met"] is met
    against = Memory(limit, "small").judge(found | {"growth_bytes": 0}, {"peak_bytes": 5_000_000})
    assert against["measured"] == pytest.approx(4.0) and against["met"] is met


@pytest.mark.parametrize("within, met", [(0.26, True), (0.24, False)])
def test_a_target_on_time_per_code_compares_round_by_round(within, met):
    """10, 20, 30 ms for 2^14 codes beside 32, 64, 120 ms for 2^16: 25 %, 25 % and 0 % more per code."""
    seconds = {1 << 14: [0.01, 0.02, 0.03], 1 << 16: [0.032, 0.064, 0.12]}
    verdict = TimePerCode((1 << 14, 1 << 16), within).judge(seconds)
    assert verdict["measured"] == pytest.approx(25.0) and verdict["met"] is met and verdict["worst_at"] == 1 << 14
    assert show(verdict) == "+25.0 % (+0.0 %..+25.0 %)"


@pytest.mark.parametrize("seconds, text", [(1.05, "1.05 s"), (12.34, "12.3 s"), (0.0071234, "7.12 ms"),
                                           (0.1234, "123 ms"), (4.2e-5, "42 us")])  # fmt: skip
def test_duration(seconds, text):
    assert duration(seconds) == text and megabytes(12_345_678) == "12 MB" and megabytes(1_230_000) == "1.2 MB"


# ---- memory ------------------------------------------------------------------------------------------------------

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@linux_only
def test_the_memory_probe_sees_64_megabytes():
    """Held or given back before the end, the peak counts; a call that allocates nothing shows next to nothing."""
    size, held = 64 << 20, []
    # 4 MB cover what the interpreter and the kernel's batched page counts add.
    grown = memory.peak_growth(lambda: torch.ones(size, dtype=torch.uint8))
    assert size - 4_000_000 < grown["growth_bytes"] < size + 4_000_000
    grown = memory.peak_growth(lambda: held.append(torch.ones(size, dtype=torch.uint8)))
    assert size - 4_000_000 < grown["growth_bytes"] < size + 4_000_000
    assert memory.peak_growth(lambda: None)["growth_bytes"] < 4_000_000


@linux_only
def test_a_fresh_process_sees_the_formulas_arrays():
    """The authors' formula holds eight softmaxes and their logits at once: autograd saves them."""
    case = Case(64, 8, 1 << 15)
    one_array = 4 * case.n * case.num_codes
    grown = memory.probe_in_fresh_process("eager", case, "reference", threads=1)
    assert grown["codes_bytes"] == 4 * case.num_features * case.num_codes
    assert grown["growth_bytes"] > 8 * one_array
    assert grown["peak_bytes"] - grown["before_bytes"] == grown["growth_bytes"]


@linux_only
@pytest.mark.slow
def test_a_fresh_process_says_why_it_fails():
    with pytest.raises(ValueError, match="nonsense"):
        memory.probe_in_fresh_process(LIBRARY, CASE, "nonsense", threads=1)
