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
from bench.accuracy import FORMULA_LIMITS, compare, limits_of, oracle, too_far
from bench.cases import ALL, CASES, CHUNKED, FORMULAS, FUNCTION_CASES, LIBRARY, ONE_THREAD, TITLES, Case, case_named
from bench.formulas import authors_loss, tidy_loss
from bench.implementations import Problem, build
from bench.table import duration, megabytes
from bench.targets import Target, judge_time_per_code, missed, show

FUNCTIONS = ("cplearn_loss", *sorted({case.function for case in FUNCTION_CASES}))

# ---- formulas and accuracy ---------------------------------------------------------------------------------------


def _embeddings(n: int, f: int) -> tuple[torch.Tensor, torch.Tensor]:
    h = torch.randn(2, n, f, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return tuple(view.requires_grad_() for view in torch.nn.functional.normalize(h, dim=2))


@pytest.mark.parametrize("formula", [authors_loss, tidy_loss])
@pytest.mark.parametrize("beta", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("n, f, c", [(1, 1, 3), (6, 7, 100), (33, 32, 257)])
def test_formulas_agree_with_the_oracle(formula, beta, n, f, c):
    """In float64 all three differ by rounding only: some thousand additions of numbers of order 10."""
    dictionary = cpk.HadamardDictionary(num_features=f, num_codes=c, seed=1)
    views = _embeddings(n, f)
    exact = cpk.reference.cplearn_loss(*views, dictionary, temperature=0.4, beta=beta)
    value = formula(*views, dictionary.to_dense(dtype=torch.float64), 0.4, beta)
    got, expected = ([loss.detach(), *torch.autograd.grad(loss, views)] for loss in (value, exact))
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("formula, softmax, log_softmax", [(authors_loss, 8, 0), (tidy_loss, 0, 2)])
def test_number_of_softmax_evaluations(formula, softmax, log_softmax):
    names = []

    class Noted(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with Noted():
        formula(*_embeddings(3, 4), torch.ones(4, 5, dtype=torch.float64), 1.0)
    assert (names.count("_softmax"), names.count("_log_softmax")) == (softmax, log_softmax)


def test_only_the_tidy_formula_survives_an_underflow():
    h = torch.tensor([[1.0, 0.0]])
    weight = torch.tensor([[1.0, -1.0], [1.0, 1.0]])
    assert authors_loss(h, h, weight, 1e-3).isnan()
    assert tidy_loss(h, h, weight, 1e-3).isfinite()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_implementation_is_right_and_wrong_answers_are_seen(function):
    problem = Problem(Case(5, 7, 33, function=function))
    expected = oracle(problem)
    assert all(part.dtype == torch.float64 or function == "assign" for part in expected)
    for name in (*ALL, *FORMULAS) if function == "cplearn_loss" else (LIBRARY, CHUNKED):
        if name.startswith("compiled") or FORMULAS.get(name) == "bf16":
            continue
        right = build(name, problem, "reference")()
        assert not too_far(compare(right, expected, problem), limits_of(name, problem.case)), name
    assert len(right) == {"cplearn_loss": 3, "loss_alone": 1, "assign": 1}.get(function, 2)
    for index, part in enumerate(right):
        for changed in (part * 1.001, torch.zeros_like(part), part * float("nan")):
            wrong = (*right[:index], changed, *right[index + 1 :])
            assert "is off by" in too_far(compare(wrong, expected, problem), FORMULA_LIMITS)


def test_the_dense_dictionary_is_the_dictionary(monkeypatch):
    monkeypatch.setattr("bench.implementations._SLICE", 1)  # many slices
    problem = Problem(Case(5, 8, 64, dictionary="rademacher"))
    assert problem.weight().equal(problem.dictionary.to_dense())


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
    assert timing.spread(timing.ratios(slow, fast)) == {"median": 4, "min": 4, "max": 4}
    assert timing.ratios([6.0], [1.0, 2.0, 3.0]) == [6, 3, 2] and timing.spread([6, 3, 2])["median"] == 3
    with pytest.raises(ValueError, match="2 rounds against 3"):
        timing.ratios([1.0, 2.0], [1.0, 2.0, 3.0])


# ---- cases and targets -------------------------------------------------------------------------------------------


def test_cases_are_distinct_and_their_targets_can_be_judged():
    every = (*CASES, *FUNCTION_CASES)
    assert len({case.name for case in every}) == len({case.shrunk().name for case in every}) == len(every)
    for case in every:
        assert case.implementations[0] == LIBRARY and set(case.implementations) <= set(TITLES)
        assert case_named(case.name) is case and not (case.full_only and case.targets)
        for target in case.targets:
            assert target.of == LIBRARY
            assert target.kind != "speed" or target.against in case.implementations[1:]
            assert target.kind != "memory" or not target.against or case_named(target.against)
    with pytest.raises(ValueError, match="unknown case 'hadamard'"):
        case_named("hadamard")


# 2 * 64 * 16384 logits in 10 ms; ratios 13, 12 and 11, not 130 ms / 10 ms.
CELLS = {
    LIBRARY: {"seconds": [0.01, 0.01, 0.02], "peak_bytes": 9_000_000, "growth_bytes": 4_000_000},
    "eager": {"seconds": [0.13, 0.12, 0.22]}, "tidy": {"seconds": [0.02, 0.02, 0.04]},
    "small": {"peak_bytes": 5_500_000},
}  # fmt: skip


@pytest.mark.parametrize("target, measured, met, shown", [
    (Target("speed", 12.0, "eager"), 12.0, True, "12x (11x..13x)"),
    (Target("speed", 12.1, "eager"), 12.0, False, "12x (11x..13x)"),
    (Target("speed", 3.0, "tidy"), 2.0, False, "2x (2x..2x)"),
    (Target("speed", 1.9, "eager", of="tidy"), 6.0, True, "6x (5.5x..6.5x)"),
    (Target("rate", 2.0e8), 2.097152e8, True, "2.10e+08 (1.05e+08..2.10e+08)"),
    (Target("rate", 2.2e8), 2.097152e8, False, "2.10e+08 (1.05e+08..2.10e+08)"),
    (Target("time", 0.011), 0.01, True, "0.01 s (0.01 s..0.02 s)"),
    (Target("time", 0.01), 0.01, False, "0.01 s (0.01 s..0.02 s)"),
    (Target("memory", 4.1), 4.0, True, "4.0 MB"), (Target("memory", 4.0), 4.0, False, "4.0 MB"),
    (Target("memory", 3.6, "small"), 3.5, True, "3.5 MB"),  # how much higher the peak is than that of another case
])  # fmt: skip
def test_targets_are_judged_by_the_median_of_the_rounds(target, measured, met, shown):
    verdict = target.judge(CELLS, Case(64, 128, 1 << 14).logits)
    assert verdict["measured"] == pytest.approx(measured) and verdict["met"] is met and show(verdict) == shown
    assert missed([verdict]) == ("" if met else f"missed: {target}, measured {shown}")


@pytest.mark.parametrize("target", [Target("speed", 1.0, ONE_THREAD), Target("time", 1.0, of="cuda"),
                                    Target("memory", 1.0, of="tidy")])  # fmt: skip
def test_a_target_on_what_was_not_measured_is_not_judged(target):
    assert target.judge(CELLS, 1) is None


@pytest.mark.parametrize("within, met", [(0.26, True), (0.24, False)])
def test_a_target_on_time_per_code_compares_round_by_round(within, met):
    """10, 20, 30 ms for 2^14 codes beside 32, 64, 120 ms for 2^16: 25 %, 25 % and 0 % more per code."""
    verdict = judge_time_per_code({1 << 14: [0.01, 0.02, 0.03], 1 << 16: [0.032, 0.064, 0.12]}, within)
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
    calls = (lambda: torch.ones(size, dtype=torch.uint8), lambda: held.append(torch.ones(size, dtype=torch.uint8)))
    for call, grown in ((calls[0], size), (calls[1], size), (lambda: None, 0)):
        # 4 MB cover what the interpreter and the kernel's batched page counts add.
        assert abs(memory.peak_growth(call)["growth_bytes"] - grown) < 4_000_000


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
        memory.probe_in_fresh_process(LIBRARY, Case(5, 7, 33), "nonsense", threads=1)
