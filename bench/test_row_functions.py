"""The benchmark of the functions of one batch, and of the loss without gradients: the library against backend torch."""

from __future__ import annotations

from bench.cases import FUNCTION_CASES
from bench.turns import Turns, each_implementation


@each_implementation(FUNCTION_CASES)
def test_row_function(turns: Turns, implementation: str, entry) -> None:
    """One implementation's time."""
    entry(turns, implementation, errors=turns.errors[implementation])
