"""Builds the problem of a case and, for each implementation, the call that is measured."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

import cplearn_kernels as cpk
from bench.cases import CHUNKED, FORMULAS, LIBRARY, ONE_THREAD, TITLES, Case
from bench.formulas import authors_loss, tidy_loss

Loss = Callable[[Tensor, Tensor], Tensor]


class Problem:
    """The inputs of one case: two views of a batch, the dictionary, the temperature.

    The embeddings are the paper's, unit rows with the "l2" temperature, and the second view is the first with noise
    (cosine about 0.7). With the "tanh" embedding the authors' formula returns NaN on many batches, and NaN is no
    yardstick. No implementation's work depends on the values.
    """

    def __init__(self, case: Case, dtype: torch.dtype = torch.float32) -> None:
        kinds = {"hadamard": cpk.HadamardDictionary, "rademacher": cpk.RademacherDictionary}
        if case.dictionary not in kinds:
            raise ValueError(f"case {case.name}: dictionary {case.dictionary!r}; expected one of {', '.join(kinds)}")
        self.case = case
        self.dictionary = kinds[case.dictionary](num_features=case.num_features, num_codes=case.num_codes, seed=0)
        self.temperature = cpk.default_temperature(case.num_features, case.num_codes, embedding="l2")
        generator = torch.Generator().manual_seed(0)
        first = torch.randn(case.n, case.num_features, generator=generator)
        second = first + torch.randn(case.n, case.num_features, generator=generator)
        self.h1 = torch.nn.functional.normalize(first).to(dtype).requires_grad_()
        self.h2 = torch.nn.functional.normalize(second).to(dtype).requires_grad_()

    @cached_property
    def weight(self) -> Tensor:
        """The dictionary as a dense float32 matrix, (f, c): what the formulas hold."""
        return self.dictionary.to_dense().contiguous()

    def codes_bytes(self, implementation: str) -> int:
        """Bytes that the codes themselves occupy for an implementation before the call."""
        return self.weight.nbytes if implementation in FORMULAS else 0


def build_loss(implementation: str, problem: Problem, backend: str) -> Loss:
    """The loss of an implementation on `problem`; the library runs on `backend`.

    The compiled formula starts from an empty compiler state, so that a case is compiled for its own static shapes and
    never runs into torch's limit on recompilations.
    """
    temperature, dictionary = problem.temperature, problem.dictionary
    if implementation == LIBRARY:
        return lambda h1, h2: cpk.cplearn_loss(h1, h2, dictionary, temperature=temperature, backend=backend)
    if implementation == ONE_THREAD:
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
    if implementation not in FORMULAS:
        raise ValueError(f"unknown implementation {implementation!r}; expected one of {', '.join(TITLES)}")
    formula = authors_loss if implementation == "eager" else tidy_loss
    if implementation == "compiled":
        torch.compiler.reset()
        formula = torch.compile(tidy_loss, dynamic=False)
    weight = problem.weight
    return lambda h1, h2: formula(h1, h2, weight, temperature)


def forward_backward(loss: Loss, problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and its gradients with respect to both views: the call that the targets are about."""
    value = loss(problem.h1, problem.h2)
    grad1, grad2 = torch.autograd.grad(value, (problem.h1, problem.h2))
    return value.detach(), grad1, grad2


def function_call(implementation: str, problem: Problem, backend: str) -> Callable[[], tuple[Tensor, ...]]:
    """A call of the case's function: its value and, where it has one, the gradient along a random direction."""
    name, h, dictionary = problem.case.function, problem.h1, problem.dictionary
    options = {"backend": "torch" if implementation == CHUNKED else backend, "temperature": problem.temperature}

    def loss_alone() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (cpk.cplearn_loss(h, problem.h2, dictionary, **options),)

    if name == "loss_alone":
        return loss_alone
    if name == "assign":
        return lambda: cpk.assign(h, dictionary, backend=options["backend"])[:1]
    function = getattr(cpk, name)
    with torch.no_grad():
        shape = function(h, dictionary, **options).shape
    upstream = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(h.dtype)

    def with_gradient() -> tuple[Tensor, ...]:
        value = function(h, dictionary, **options)
        return value.detach(), *torch.autograd.grad(value, h, upstream)

    return with_gradient
