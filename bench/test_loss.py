"""The benchmark of `cplearn_loss`: time and peak memory of every row and column of `bench.cases`.

`pytest bench/ --benchmark` measures. Without the option every benchmark runs once on a shrunk row and checks that all
columns give the same loss and the same gradient.
"""

from __future__ import annotations

from functools import partial

import pytest

from bench.accuracy import compare, limit_of, oracle
from bench.implementations import Problem, build_loss, forward, forward_backward
from bench.memory import probe, probe_in_fresh_process
from bench.cases import LIBRARY, LINEAR_BARS, MEGABYTE, ROWS, LinearBar, Row, row_named
from bench.timing import alternate

# Raised inside torch by torch.compile; nothing here calls torch.jit.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
each_row = pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])


@each_row
def test_time(bench, row: Row) -> None:
    """Every column agrees with float64; when measuring, then the times of forward + backward and of forward."""
    small = row if bench.measuring else row.shrunk()
    problem = Problem(small)
    losses = {}
    # The check holds a row with the library alone against the formulas too: its W fits once it is shrunk. One
    # compilation (10 to 30 s) is enough for a check.
    columns = row.columns if bench.measuring else (LIBRARY, "eager", "tidy") + ("compiled",) * (row is ROWS[0])
    expected = oracle(problem) if len(columns) > 1 else None
    for column in columns:
        loss = build_loss(column, problem, bench.backend)
        try:
            got = forward_backward(loss, problem)
        except Exception as error:
            # A machine without a C++ compiler can still measure the rest; the table says what is missing and why.
            if column != "compiled" or not bench.measuring:
                raise
            bench.collector.add_error(row, column, f"{type(error).__name__}: {str(error).splitlines()[0]}")
            continue
        losses[column] = loss
        assert got[0].isfinite() and got[1].isfinite().all() and got[2].isfinite().all(), f"{column}: not finite"
        if expected is not None:
            agreement = compare(got, expected, problem.temperature)
            assert agreement.within(limit_of(column)), f"{column}: {agreement}, allowed {limit_of(column)}"
            if bench.measuring:
                bench.collector.add_agreement(row, column, agreement.as_dict())
    if bench.measuring:
        calls = {column: partial(forward_backward, loss, problem) for column, loss in losses.items()}
        bench.collector.add_times(row, "forward_backward", alternate(calls, bench.rounds))
        # Without gradients the compiled column would have to be compiled anew, for the lesser of the two tables.
        calls = {column: partial(forward, loss, problem) for column, loss in losses.items() if column != "compiled"}
        bench.collector.add_times(row, "forward", alternate(calls, bench.rounds))


@pytest.mark.parametrize("bar", LINEAR_BARS, ids=lambda bar: bar.rows[-1])
def test_time_per_code(bench, bar: LinearBar) -> None:
    """The library on all rows of a bar on time against c, in turns: rows timed one after the other would be compared
    across minutes, in which a shared machine changes."""
    rows = [row_named(name) for name in bar.rows]
    problems = {row.name: Problem(row if bench.measuring else row.shrunk()) for row in rows}
    calls = {
        name: partial(forward_backward, build_loss(LIBRARY, problem, bench.backend), problem)
        for name, problem in problems.items()
    }
    seconds = alternate(calls, bench.rounds if bench.measuring else 1)
    assert all(time > 0 for times in seconds.values() for time in times)
    if bench.measuring:
        bench.collector.add_linear(rows, seconds)


@each_row
def test_memory(bench, row: Row) -> None:
    """When measuring: the peak of each column in a fresh process. The check probes the library in this process.

    The limit of the check is below the 134 MB of the dense dictionary of the largest shrunk row of f = 2048, so that a
    library that materialises its codes fails it. The oracle backend does so by design.
    """
    if not bench.measuring:
        grown = probe(LIBRARY, row.shrunk(), bench.backend)
        assert grown["codes_bytes"] == 0
        assert bench.backend == "reference" or grown["growth_bytes"] < 64 * MEGABYTE
        return
    for column in row.columns:
        grown = probe_in_fresh_process(column, row, bench.backend, bench.threads)
        bench.collector.add_memory(row, column, grown)
