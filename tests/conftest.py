"""Collects the conformance suite's worst errors and prints them as a table; without a GPU, interprets Triton kernels.

Also what two test processes on two cores need: threads that sleep while they wait, and memory that is kept.
"""

import ctypes
import gc
import json
import os
import signal
import sys

import pytest

# Before anything loads OpenMP: by default its threads spin while they wait, on cores that other processes want.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from tabulate import tabulate
from turns import alone, beside_others  # noqa: F401

pytest.register_assert_rewrite("function_checks", "gpu_checks", "range_checks", "shard_checks")

# Before anything imports the kernels: Triton decides when a kernel is defined.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def keep_freed_memory():
    """glibc returns large blocks to the system and gets them again page by page: half of the oracle's time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: no block is mapped by itself
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: the heap does not shrink


@pytest.fixture(scope="session", autouse=True)
def known_signals():
    """SIGINT and SIGTERM act as in a terminal, here and in the processes that tests start.

    They would else be inherited: a shell starts its background jobs with SIGINT ignored, and CI runners do likewise.
    """
    known = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {signum: signal.signal(signum, handler) for signum, handler in known.items()}
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, before) if hasattr(signal, "pthread_sigmask") else None
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler or signal.SIG_DFL)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@pytest.fixture(scope="module", autouse=True)
def give_back_memory():
    """After the last test of a file, what `keep_freed_memory` kept: other processes may want it."""
    yield
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        gc.collect()
        trim(0)


ERRORS = [f"{what}_{part}" for what in ("value", "gradient") for part in ("error", "tolerance", "test")]


class Conformance:
    """Worst value and gradient errors, each with its tolerance and its test, by backend, function, dtype and regime."""

    def __init__(self):
        self.worst = {}

    def record(self, backend, function, dtype, regime, value_error, gradient_error, tolerances):
        key = (backend, function, str(dtype).removeprefix("torch."), regime)
        test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition("::")[2].removesuffix(" (call)")
        self.merge([[*key, value_error, tolerances[0], test, gradient_error, tolerances[1], test, 1]])

    def merge(self, rows):
        """Adds what another process recorded, as its `rows`."""
        for backend, function, dtype, regime, *found, count in rows:
            key = (backend, function, dtype, regime)
            *before, previous = self.worst.get(key, (*found, 0))
            worse = [max(before[i : i + 3], found[i : i + 3]) for i in (0, 3)]
            self.worst[key] = (*worse[0], *worse[1], previous + count)

    def rows(self):
        """Everything recorded, sorted: lists of plain values, the key first."""
        return [[*key, *worst] for key, worst in sorted(self.worst.items())]

    def scratch(self):
        """A collector of its own, for answers that are wrong on purpose."""
        return Conformance()

    def table(self):
        """The table in Markdown."""
        heads = ["backend", "function", "dtype", "regime", "worst value error", "gradient error", "tolerance", "cases"]
        rows = [
            [*key, f"{value:.1e}", f"{gradient:.1e}", f"{tolerance:.0e}", count]
            for *key, value, _, _, gradient, tolerance, _, count in self.rows()
        ]
        return tabulate(rows, heads, tablefmt="github", disable_numparse=True)


def pytest_addoption(parser):
    parser.addoption("--conformance-json", metavar="FILE", help="write the conformance suite's worst errors as JSON")
    parser.addoption(
        "--conformance-backends", metavar="NAMES", default="cpu,torch", help="what the conformance suite runs"
    )
    parser.addoption("--oracle-answers", metavar="FOLDER", help="keep the oracle's answers there, for runs that follow")


def pytest_configure(config):
    config.conformance = Conformance()
    keep_freed_memory()


@pytest.fixture
def conformance(request):
    """The collector of the run."""
    return request.config.conformance


def pytest_sessionfinish(session):
    """In a process of pytest-xdist: what was recorded goes to the process that prints the summary."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["conformance"] = session.config.conformance.rows()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    node.config.conformance.merge(getattr(node, "workeroutput", {}).get("conformance", []))


def pytest_terminal_summary(terminalreporter, config):
    if not config.conformance.worst:
        return
    terminalreporter.section("conformance: worst errors against the float64 oracle")
    terminalreporter.write_line(config.conformance.table())
    path = config.getoption("--conformance-json")
    if path:
        names = ["backend", "function", "dtype", "regime", *ERRORS, "cases"]
        rows = [dict(zip(names, row, strict=True)) for row in config.conformance.rows()]
        with open(path, "w") as file:
            json.dump(rows, file, indent=1)
