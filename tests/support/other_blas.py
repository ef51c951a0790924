"""Another BLAS, emulated: float32 matrix products whose sums run in another order and in pieces of another size.

A BLAS is free in both, and processors differ in them. A product of given sizes is always summed the same way, as a
library does it. `pytest -p other_blas --other-blas SEED` runs any test so; its folder must be on PYTHONPATH.
"""

from __future__ import annotations

import contextlib
import math
import random
import warnings

import numpy
import torch


@contextlib.contextmanager
def other_blas(seed: int):
    """Within it torch's products of two float32 matrices on the CPU, and numpy's, are summed in the order of `seed`."""
    library, matmul = torch.library.Library("aten", "IMPL"), numpy.matmul

    def product(a, b):
        if a.dtype != torch.float32:
            return _product(a, b)
        total = torch.zeros(a.shape[0], b.shape[1])
        for piece in _pieces(seed, a.shape[0], a.shape[1], b.shape[1]):
            total += _product(a[:, piece], b[piece])
        return total

    def addmm(total, a, b, *, beta=1, alpha=1):
        return (0 if beta == 0 else beta * total) + alpha * product(a, b)

    def addmm_(total, a, b, *, beta=1, alpha=1):
        return total.copy_(addmm(total, a, b, beta=beta, alpha=alpha))

    def of_arrays(a, b, *arguments, **options):
        if a.dtype != numpy.float32 or a.ndim != 2 or b.ndim != 2:
            return matmul(a, b, *arguments, **options)
        pieces = _pieces(seed, a.shape[0], a.shape[1], b.shape[1])
        return sum(matmul(a[:, piece.numpy()], b[piece.numpy()], *arguments, **options) for piece in pieces)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")
        for name, function in (("mm", product), ("addmm", addmm), ("addmm_", addmm_)):
            library.impl(name, function, "CPU")
    numpy.matmul = of_arrays
    try:
        yield
    finally:
        numpy.matmul = matmul
        library._destroy()


def _product(a, b):
    # A product of another operator, which is not replaced.
    return torch.bmm(a[None], b[None])[0]


def _pieces(seed: int, *sizes: int):
    """The terms of each piece: even seeds take them as they come, odd seeds in any order."""
    generator = random.Random(f"{seed} {sizes}")
    terms = sizes[1]
    # From the registers of a simple kernel to a cache's worth.
    piece = 2 ** generator.randint(2, 9)
    order = list(range(terms))
    if seed % 2:
        generator.shuffle(order)
    return torch.tensor(order, dtype=torch.int64).split(max(piece, math.ceil(terms / 512)))


def pytest_addoption(parser):
    parser.addoption("--other-blas", type=int, metavar="SEED", help="emulate a BLAS that sums in another order")


def pytest_configure(config):
    seed = config.getoption("--other-blas")
    if seed is not None:
        replaced = other_blas(seed)
        replaced.__enter__()
        config.add_cleanup(lambda: replaced.__exit__(None, None, None))
