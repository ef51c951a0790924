"""Fixtures for test processes that share a machine: modules whose tests run while no other process runs a test.

For what measures seconds, and for long calls on all cores whose threads wait for each other: they lose more time to a
neighbour than it gains. In one process nothing waits.
"""

from __future__ import annotations

import contextlib
import os

import pytest

try:
    import fcntl
except ImportError:  # not POSIX: tests only share
    fcntl = None

PARALLEL = fcntl is not None and bool(os.environ.get("PYTEST_XDIST_WORKER"))


@contextlib.contextmanager
def _room(tmp_path_factory, exclusive):
    """Many at a time, or one alone, in the room of this run. Who waits holds the door, so that nobody overtakes."""
    folder = tmp_path_factory.getbasetemp().parent  # that of the process which started the others
    with open(folder / "door", "w") as door, open(folder / "room", "w") as room:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(room, fcntl.LOCK_UN)  # closing is not enough where a forked child has the file too


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """While the tests of a module that uses this run, the other processes finish theirs and wait."""
    with _room(tmp_path_factory, exclusive=True) if PARALLEL else contextlib.nullcontext():
        yield


@pytest.fixture(autouse=True)
def beside_others(request, tmp_path_factory):
    """Every other test: beside those of other processes, but never beside a module that is `alone`."""
    wait = PARALLEL and "alone" not in request.fixturenames
    with _room(tmp_path_factory, exclusive=False) if wait else contextlib.nullcontext():
        yield
