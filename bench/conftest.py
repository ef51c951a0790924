"""The options of `pytest bench/`, the entries of pytest-benchmark, and the tables at the end.

`--benchmark` measures; without it every benchmark runs once, small, and its result is checked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.cases import CASES, LIBRARY, case_named
from bench.table import tables
from bench.timing import ratios, spread
from bench.turns import Settings, Turns, params_of, replay, seconds_of_the_turns, selected, take_turns
from cplearn_kernels.validation import check_backend
from train.machine import describe

_HERE = Path(__file__).resolve().parent

_SETTINGS = pytest.StashKey[Settings]()
_ENTRIES = pytest.StashKey[list]()
_MACHINE = pytest.StashKey[dict]()
# What changes from one run to the next on the same machine; pytest-benchmark warns when it compares other machines.
_OF_THE_RUN = ("commit", "date", "load_average")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Registers our options; pytest takes no abbreviations, so `--benchmark` and pytest-benchmark's are distinct."""
    group = parser.getgroup("cplearn-kernels", "benchmarks of cplearn-kernels")
    group.addoption("--benchmark", action="store_true", help="measure (default: check each benchmark once, small)")
    group.addoption("--benchmark-full", action="store_true", help="--benchmark with what takes minutes more")
    group.addoption("--backend", default="cpu", help="the library's backend (default: cpu)")
    group.addoption("--threads", type=int, default=2, help="threads of torch and the library (default: 2)")


def pytest_configure(config: pytest.Config) -> None:
    """Turns the options into the session's settings."""
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("bench/ needs pytest-benchmark: pip install -e '.[bench]'")
    option = config.getoption
    full = option("--benchmark-full", default=False)
    measuring = option("--benchmark", default=False) or full
    rounds = int(option("benchmark_min_rounds")) if measuring else 1
    turn_seconds = float(option("benchmark_max_time")) / rounds if measuring else 0.0
    backend, threads = option("--backend", default="cpu"), option("--threads", default=2)
    config.stash[_SETTINGS] = Settings(measuring, full, backend, threads, rounds, turn_seconds)
    config.stash[_ENTRIES] = []
    if measuring and option("numprocesses", default=None):
        raise pytest.UsageError("--benchmark measures one thing at a time; run it without pytest-xdist's -n")
    if not measuring:
        config.option.benchmark_disable = True
    if config.option.benchmark_columns is None:
        config.option.benchmark_columns = ["median", "min", "max", "iqr", "rounds", "iterations"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out cases this run does not cover, and stops before any work when the run cannot succeed."""
    settings = config.stash[_SETTINGS]
    ours = [item for item in items if _HERE in item.path.parents]
    left_out = [item for item in ours if "turns" in params_of(item) and not _wanted(params_of(item), settings)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    if config.option.collectonly or not ours:
        return
    try:
        check_backend(settings.backend)
    except ValueError as error:
        raise pytest.UsageError(f"--{error}") from None
    _machine(config)  # while it is still idle


def _wanted(params: Mapping[str, str], settings: Settings) -> bool:
    case = case_named(params["turns"])
    if settings.measuring:
        return settings.full or not case.full_only
    # One compilation (10 to 30 s) is enough for a check.
    return params["implementation"] != "compiled" or case is CASES[0]


def _machine(config: pytest.Config) -> dict[str, Any]:
    """The description of the machine, made once."""
    if _MACHINE not in config.stash:
        config.stash[_MACHINE] = describe(config.stash[_SETTINGS].threads)
    return config.stash[_MACHINE]


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """The processor and the versions instead of the host's name and the clock's rate at this moment."""
    machine_info.clear()
    machine_info.update((key, value) for key, value in _machine(config).items() if key not in _OF_THE_RUN)


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    """Adds the whole description, for the tables' captions."""
    output_json["machine"] = _machine(config)


@pytest.fixture(scope="session")
def settings(pytestconfig: pytest.Config) -> Iterator[Settings]:
    """The session's settings, with torch on the chosen number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(pytestconfig.stash[_SETTINGS].threads)
    yield pytestconfig.stash[_SETTINGS]
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def turns(request: pytest.FixtureRequest, settings: Settings) -> Turns:
    """What the selected implementations of a case took."""
    return take_turns(case_named(request.param), selected(request), settings)


def pytest_itemcollected(item: pytest.Item) -> None:
    """All entries are timed by the clock that shows the seconds of the turns."""
    item.add_marker(pytest.mark.benchmark(timer=seconds_of_the_turns))


@pytest.fixture
def entry(benchmark, settings: Settings, pytestconfig: pytest.Config):
    """Makes an implementation's entry: `entry(turns, implementation, **extra)`."""

    def make(turns: Turns, implementation: str, group: str | None = None, **extra: Any) -> None:
        case = turns.case
        benchmark.group = group or case.name
        replay(benchmark, turns, implementation)
        benchmark.extra_info.update(
            case=case.name, function=case.function, dictionary=case.dictionary, n=case.n,
            num_features=case.num_features, num_codes=case.num_codes, logits=case.logits,
            implementation=implementation, backend=settings.backend, **extra,
        )  # fmt: skip
        if implementation != LIBRARY and LIBRARY in turns.seconds:
            benchmark.extra_info["ratio"] = spread(ratios(turns.seconds[implementation], turns.seconds[LIBRARY]))

    yield make
    if settings.measuring and benchmark.stats:
        pytestconfig.stash[_ENTRIES].append(benchmark.stats.as_dict())


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints the tables."""
    entries: Sequence[Mapping[str, Any]] = config.stash[_ENTRIES]
    if entries:
        terminalreporter.section("implementations beside each other")
        terminalreporter.write_line(tables(entries, "simple"))
