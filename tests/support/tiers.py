"""Cases for the second tier of tests."""

import pytest


def slow(*case):
    """A case that only `make test-slow` runs."""
    return pytest.param(*case, marks=pytest.mark.slow)
