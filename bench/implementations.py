"""Builds the problem of a row and, for each column, the function (h1, h2) -> loss that is measured."""

from __future__ import annotations

from functools import cached_property
from typing import Callable

import torch
from torch import Tensor

from bench.formulas import authors_loss, tidy_loss
from bench.cases import COLUMN_TITLES, FORMULAS, LIBRARY, ONE_THREAD, Row

Loss = Callable[[Tensor, Tensor], Tensor]


class Problem:
    """The inputs of one row: two views of a batch, the dictionary, the temperature.

    The embeddings are the paper's, unit rows with the "l2" temperature, and the second view is the first with noise
    (cosine about 0.7). With the "tanh" embedding the authors' formula returns NaN on many batches, and NaN is no
    yardstick. No column's work depends on the values.
    """

    def __init__(self, row: Row, seed: int = 0) -> None:
        import cplearn_kernels as cpk

        kinds = {"hadamard": cpk.HadamardDictionary, "rademacher": cpk.RademacherDictionary}
        if row.dictionary not in kinds:
            raise ValueError(f"row {row.name}: dictionary {row.dictionary!r}; expected one of {', '.join(kinds)}")
        self.row = row
        self.dictionary = kinds[row.dictionary](num_features=row.num_features, num_codes=row.num_codes, seed=seed)
        self.temperature = cpk.default_temperature(row.num_features, row.num_codes, embedding="l2")
        generator = torch.Generator().manual_seed(seed)
        first = torch.randn(row.n, row.num_features, generator=generator)
        second = first + torch.randn(row.n, row.num_features, generator=generator)
        self.h1 = torch.nn.functional.normalize(first).requires_grad_()
        self.h2 = torch.nn.functional.normalize(second).requires_grad_()

    @cached_property
    def weight(self) -> Tensor:
        """The dictionary as a dense float32 matrix, (f, c): what the formulas hold."""
        return self.dictionary.to_dense().contiguous()

    def codes_bytes(self, column: str) -> int:
        """Bytes that the codes themselves occupy for `column` before the call."""
        return 0 if column not in FORMULAS else self.weight.numel() * self.weight.element_size()


def build_loss(column: str, problem: Problem, backend: str) -> Loss:
    """The function of `column` on `problem`; the library runs on `backend`.

    The compiled column starts from an empty compiler state, so that a row is compiled for its own static shapes and
    never runs into torch's limit on recompilations.
    """
    temperature = problem.temperature
    if column == LIBRARY:
        from cplearn_kernels import cplearn_loss

        dictionary = problem.dictionary
        return lambda h1, h2: cplearn_loss(h1, h2, dictionary, temperature=temperature, backend=backend)
    if column == ONE_THREAD:
        library = build_loss(LIBRARY, problem, backend)

        def on_one_thread(h1: Tensor, h2: Tensor) -> Tensor:
            # The gradient is made in the forward, so the threads of the backward do not matter.
            before = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                return library(h1, h2)
            finally:
                torch.set_num_threads(before)

        return on_one_thread
    if column not in COLUMN_TITLES:
        raise ValueError(f"unknown column {column!r}; expected one of {', '.join(COLUMN_TITLES)}")
    formula = authors_loss if column == "eager" else tidy_loss
    if column == "compiled":
        torch.compiler.reset()
        formula = torch.compile(tidy_loss, dynamic=False)
    weight = problem.weight
    return lambda h1, h2: formula(h1, h2, weight, temperature)


def forward_backward(loss: Loss, problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and its gradients with respect to both views: the call that the bars are about."""
    value = loss(problem.h1, problem.h2)
    grad1, grad2 = torch.autograd.grad(value, (problem.h1, problem.h2))
    return value.detach(), grad1, grad2


def forward(loss: Loss, problem: Problem) -> Tensor:
    """The loss alone, under `no_grad`."""
    with torch.no_grad():
        return loss(problem.h1, problem.h2)


def check_backend(backend: str) -> None:
    """Raises what the library raises when `backend` is unknown or cannot run here."""
    problem = Problem(Row(2, 4, 8))
    forward_backward(build_loss(LIBRARY, problem, backend), problem)
