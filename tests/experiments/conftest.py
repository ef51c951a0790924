"""Shared by the tests of the experiments."""

from commands import fails, one_thread  # noqa: F401
