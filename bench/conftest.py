"""The options of `pytest bench/`, the session's settings, and the tables at the end of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Iterator

import pytest

from bench.results import Collector, default_path, save
from bench.cases import ROWS, Row
from bench.table import text

_HERE = Path(__file__).resolve().parent


@dataclass
class Bench:
    """What a benchmark needs to know: whether to measure or only to check, how, and where results go."""

    measuring: bool
    full: bool
    backend: str
    threads: int
    rounds: int
    collector: Collector | None = None

    def wanted(self, row: Row) -> bool:
        """Whether this run covers `row`; the check covers all of them, since shrunk rows are cheap."""
        return self.full or not row.full_only or not self.measuring


_BENCH = pytest.StashKey[Bench]()


def _positive(value: str) -> int:
    number = int(value)
    if number < 1:
        raise ValueError(value)
    return number


def pytest_addoption(parser: pytest.Parser) -> None:
    """Registers our options; pytest takes no abbreviations, so `--benchmark` and pytest-benchmark's are distinct."""
    group = parser.getgroup("cplearn-kernels", "benchmarks of cplearn-kernels")
    group.addoption("--benchmark", action="store_true",
                    help="measure, print the tables and write JSON (default: check each benchmark once, small)")
    group.addoption("--benchmark-full", action="store_true", help="--benchmark with the rows that take minutes")
    group.addoption("--backend", default="cpu", help="the library's backend (default: cpu)")
    group.addoption("--threads", type=_positive, default=2, help="threads of torch and the library (default: 2)")
    group.addoption("--rounds", type=_positive, default=5, help="measured rounds (default: 5)")
    group.addoption("--json", type=Path, default=None, metavar="FILE",
                    help="results file (default: in bench/results, named by benchmark, backend and machine)")
    group.addoption("--require-bars", action="store_true", help="with --benchmark: fail when a bar is not met")


def pytest_configure(config: pytest.Config) -> None:
    """Turns the options into the session's settings."""
    full = config.getoption("--benchmark-full", default=False)
    config.stash[_BENCH] = Bench(
        measuring=config.getoption("--benchmark", default=False) or full,
        full=full,
        backend=config.getoption("--backend", default="cpu"),
        threads=config.getoption("--threads", default=2),
        rounds=config.getoption("--rounds", default=5),
    )
    if config.stash[_BENCH].measuring and config.getoption("numprocesses", default=None):
        raise pytest.UsageError("--benchmark measures one thing at a time; run it without pytest-xdist's -n")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out rows this run does not cover, and stops before any work when the run cannot succeed."""
    bench = config.stash[_BENCH]
    ours = [item for item in items if _HERE in item.path.parents]
    if not ours:
        return
    left_out = {item for item in ours if (row := item.callspec.params.get("row")) and not bench.wanted(row)}
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]
    if not config.option.collectonly:
        _prepare(bench)


def _prepare(bench: Bench) -> None:
    """Checks that the library is here and its backend runs; describes the machine while it is still idle."""
    try:
        from bench.implementations import check_backend
        from train.machine import describe

        check_backend(bench.backend)
    except ImportError as error:
        raise pytest.UsageError(f"{error}; install the checkout first: pip install -e '.[bench]'") from None
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise pytest.UsageError(f"--backend {bench.backend}: {error}") from None
    if bench.measuring:
        settings = {"backend": bench.backend, "rounds": bench.rounds, "full": bench.full}
        bench.collector = Collector("cplearn_loss", describe(bench.threads), settings)


@pytest.fixture
def bench(pytestconfig: pytest.Config) -> Iterator[Bench]:
    """The session's settings, with torch on the chosen number of threads for the length of one benchmark."""
    import torch

    settings = pytestconfig.stash[_BENCH]
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    yield settings
    torch.set_num_threads(before)


def _missing(bench: Bench, record: dict) -> list[str]:
    """Wanted rows of which a column lacks its time or its memory."""
    measured = {entry["name"]: entry["columns"] for entry in record["rows"]}

    def whole(part: dict) -> bool:
        return "error" in part or {"forward_backward", "memory"} <= part.keys()

    return [row.name for row in ROWS if bench.wanted(row)
            and not all(whole(measured.get(row.name, {}).get(column, {})) for column in row.columns)]


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints the tables and writes the JSON."""
    bench = config.stash[_BENCH]
    if bench.collector is None or not (record := bench.collector.record())["rows"]:
        return
    terminalreporter.section("benchmark")
    terminalreporter.write_line(text(record))
    chosen, missing = config.getoption("--json"), _missing(bench, record)
    if missing and chosen is None:
        # A selection by -k, or a run that was interrupted, must not replace a whole record.
        terminalreporter.write_line(f"\nnot written: {len(missing)} rows are incomplete; --json FILE writes the rest")
        return
    path = chosen or default_path(record)
    save(record, path)
    inside = path.is_relative_to(Path.cwd())
    terminalreporter.write_line(f"\nwritten: {path.relative_to(Path.cwd()) if inside else path}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Under `--require-bars`, turns a bar that is not met into a failed run."""
    bench = session.config.stash[_BENCH]
    if bench.collector is None or not session.config.getoption("--require-bars"):
        return
    if not all(bar["met"] for bar in bench.collector.record()["bars"]):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
