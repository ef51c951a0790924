"""Collects the conformance suite's worst errors and prints them as a table; without a GPU, interprets Triton kernels."""

import json
import os

import pytest
import torch

# Before anything imports the kernels: Triton decides when a kernel is defined.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


class Conformance:
    """Worst (value error, gradient error) by backend, function, dtype and regime, with the gradient's tolerance."""

    def __init__(self):
        self.worst = {}

    def record(self, backend, function, dtype, regime, value_error, gradient_error, tolerance):
        key = (backend, function, str(dtype).removeprefix("torch."), regime)
        value, gradient, _, count = self.worst.get(key, (0.0, 0.0, 0.0, 0))
        self.worst[key] = (max(value, value_error), max(gradient, gradient_error), tolerance, count + 1)

    def scratch(self):
        """A collector of its own, for answers that are wrong on purpose."""
        return Conformance()

    def table(self):
        """The table as Markdown lines."""
        yield "| backend | function | dtype | regime | worst value error | worst gradient error | gradient tolerance | cases |"
        yield "|---|---|---|---|---|---|---|---|"
        for key, (value, gradient, tolerance, count) in sorted(self.worst.items()):
            yield "| " + " | ".join([*key, f"{value:.1e}", f"{gradient:.1e}", f"{tolerance:.0e}", str(count)]) + " |"


def pytest_addoption(parser):
    parser.addoption("--conformance-json", metavar="FILE", help="write the conformance suite's worst errors as JSON")


def pytest_configure(config):
    config.conformance = Conformance()


@pytest.fixture
def conformance(request):
    """The collector of the run."""
    return request.config.conformance


def pytest_terminal_summary(terminalreporter, config):
    if not config.conformance.worst:
        return
    terminalreporter.section("conformance: worst errors against the float64 oracle")
    for line in config.conformance.table():
        terminalreporter.write_line(line)
    path = config.getoption("--conformance-json")
    if path:
        rows = [
            dict(zip(("backend", "function", "dtype", "regime"), key, strict=True))
            | dict(zip(("value_error", "gradient_error", "gradient_tolerance", "cases"), worst, strict=True))
            for key, worst in sorted(config.conformance.worst.items())
        ]
        with open(path, "w") as file:
            json.dump(rows, file, indent=1)
