"""A pytest plugin that notes every test's outcome at once, so that a run that is ended or crashes loses none.

    python -m pytest -p bench.gpu_test_log --outcomes FILE ...

One line of JSON each: `test` (its id), `outcome` ("started", "passed", "failed" or "skipped") and, for the last two,
`why` in one line. pytest's own summary comes at the end, that is too late for a test that hangs the device.
"""

from __future__ import annotations

import json

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outcomes", metavar="FILE", help="note the outcome of every test here as it comes")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--outcomes")
    if path and not hasattr(config, "workerinput"):  # xdist's workers hand their reports to the process that has none
        config.pluginmanager.register(_Log(path))


class _Log:
    def __init__(self, path: str) -> None:
        self._file = open(path, "a", buffering=1)

    def _note(self, test: str, outcome: str, why: str | None = None) -> None:
        self._file.write(json.dumps({"test": test, "outcome": outcome, **({"why": why} if why else {})}) + "\n")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._note(nodeid, "started")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed or report.skipped:  # of any phase: a fixture may fail or skip too
            self._note(report.nodeid, report.outcome, _why(report))
        elif report.when == "call":
            self._note(report.nodeid, "passed")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed or report.skipped:
            self._note(report.nodeid, report.outcome, _why(report))


def _why(report: pytest.TestReport | pytest.CollectReport) -> str:
    found = report.longrepr
    if isinstance(found, tuple):  # a skip: file, line, reason
        return str(found[2])[:300]
    crash = getattr(found, "reprcrash", None)
    lines = (crash.message if crash else str(found)).strip().splitlines() or [""]
    return (lines[0] if crash else lines[-1])[:300]
