"""How many CPU threads a command takes, PyTorch's and scikit-learn's alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits

from train.errors import InputError


@contextmanager
def limited_to(num_threads: int | None) -> Iterator[None]:
    """At most so many threads inside, as before outside; None changes nothing. InputError for fewer than one."""
    if num_threads is None:
        yield
        return
    if num_threads < 1:
        raise InputError(f"--num-threads was {num_threads}, expected a whole number of at least 1.")
    # Only libraries that are loaded can be limited, and scikit-learn brings its own.
    import sklearn.cluster  # noqa: F401

    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        # scikit-learn's thread pools are not PyTorch's.
        with threadpool_limits(num_threads):
            yield
    finally:
        torch.set_num_threads(before)
