"""Builds the problem of a case and, for each implementation, the call that is measured."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import cplearn_kernels as cpk
from bench.cases import CHUNKED, FORMULAS, LIBRARY, ONE_THREAD, Case
from bench.formulas import authors_loss, tidy_loss

Results = tuple[Tensor, ...]  # the value and, where there is one, the gradient with respect to each batch
_SLICE = 1 << 26  # entries of the dense dictionary made at a time: its bits pass through int64


class Problem:
    """The inputs of one case: two views of a batch, the dictionary, the temperature.

    The embeddings are the paper's, unit rows with the "l2" temperature, and the second view is the first with noise
    (cosine about 0.7). With the "tanh" embedding the authors' formula returns NaN on many batches, and NaN is no
    yardstick. No implementation's work depends on the values.

    The embeddings live on `device`; in another `dtype` their values are still those of float32. With another number of
    codes the temperature stays that of the case.
    """

    def __init__(
        self,
        case: Case,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        num_codes: int | None = None,
    ) -> None:
        self.case, self.device = case, torch.device(device)
        kind = cpk.HadamardDictionary if case.dictionary == "hadamard" else cpk.RademacherDictionary
        self.dictionary = kind(case.num_features, num_codes or case.num_codes, seed=0).to(device)
        if case.dictionary == "dense":
            self.dictionary = cpk.DenseDictionary(self.dictionary.to_dense(device=self.device))
        self.temperature = cpk.default_temperature(case.num_features, case.num_codes, embedding="l2")
        generator = torch.Generator().manual_seed(0)
        first = torch.randn(case.n, case.num_features, generator=generator)
        second = first + torch.randn(case.n, case.num_features, generator=generator)
        views = (torch.nn.functional.normalize(view) for view in (first, second))
        self.h1, self.h2 = (view.to(device, dtype).requires_grad_() for view in views)
        self._weights: dict[torch.dtype, Tensor] = {}

    def weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The dictionary as a dense matrix, (f, c), made once: what the formulas hold."""
        if dtype not in self._weights:
            f, c = self.case.num_features, self.dictionary.num_codes
            weight = self._weights[dtype] = torch.empty(f, c, dtype=dtype, device=self.device)
            step = max(_SLICE // f, 1)
            for start in range(0, c, step):
                stop = min(start + step, c)
                weight[:, start:stop] = self.dictionary.to_dense(start, stop, dtype=dtype, device=self.device)
        return self._weights[dtype]


def build(
    implementation: str, problem: Problem, backend: str | None = None, dry_run: bool = False
) -> Callable[[], Results]:
    """The call of the case's function that is timed for an implementation; the library runs on `backend`.

    An implementation that is no key of `TITLES` is a backend. In a dry run torch.compile only traces, which takes no
    compiler and seconds instead of a minute.
    """
    if implementation in FORMULAS:
        return _formula(implementation, problem, dry_run)
    backend = {LIBRARY: backend, ONE_THREAD: backend, CHUNKED: "torch"}.get(implementation, implementation)
    call = _library(problem, backend)
    if implementation == ONE_THREAD:
        return lambda: _on_one_thread(call)
    return _captured(call) if problem.case.function == "loss_graph" and problem.device.type == "cuda" else call


def _formula(name: str, problem: Problem, dry_run: bool) -> Callable[[], Results]:
    h1, h2, precision, compiled = problem.h1, problem.h2, FORMULAS[name], name.startswith("compiled")
    weight = problem.weight(torch.bfloat16 if precision == "bf16" else torch.float32)
    formula, on_gpu = authors_loss if name.startswith("eager") else tidy_loss, problem.device.type == "cuda"
    if compiled:
        options = {"backend": "eager"} if dry_run else {"mode": "max-autotune"} if on_gpu else {}
        formula = torch.compile(formula, dynamic=False, **options)
        if on_gpu:
            # Or the CUDA graph that max-autotune makes would copy the dictionary into a place of its own in every call.
            torch._dynamo.mark_static_address(weight)

    def call() -> Results:
        if compiled and on_gpu:
            torch.compiler.cudagraph_mark_step_begin()
        with _tf32() if precision == "tf32" else contextlib.nullcontext():
            half = precision == "bf16"
            with torch.autocast(problem.device.type, torch.bfloat16) if half else contextlib.nullcontext():
                value = formula(h1, h2, weight, problem.temperature)
            return value.detach(), *torch.autograd.grad(value, (h1, h2))

    return call


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


def _library(problem: Problem, backend: str | None) -> Callable[[], Results]:
    h1, h2, dictionary, name = problem.h1, problem.h2, problem.dictionary, problem.case.function
    options: dict[str, Any] = {"temperature": problem.temperature, "backend": backend}

    def loss() -> Results:
        value = cpk.cplearn_loss(h1, h2, dictionary, **options)
        return value.detach(), *torch.autograd.grad(value, (h1, h2))

    def loss_alone() -> Results:
        with torch.no_grad():
            return (cpk.cplearn_loss(h1, h2, dictionary, **options),)

    if "loss" in name:
        return loss_alone if name == "loss_alone" else loss
    if name == "assign":
        return lambda: cpk.assign(h1, dictionary, backend=backend)[:1]
    function = getattr(cpk, name)
    with torch.no_grad():
        shape = function(h1, dictionary, **options).shape
    upstream = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(h1)

    def with_gradient() -> Results:
        """The gradient along a random direction."""
        value = function(h1, dictionary, **options)
        return value.detach(), *torch.autograd.grad(value, h1, upstream)

    return with_gradient


def _on_one_thread(call: Callable[[], Results]) -> Results:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return call()
    finally:
        torch.set_num_threads(before)


def _captured(call: Callable[[], Results]) -> Callable[[], Results]:
    """The replay of a CUDA graph of the call."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # what compiles or allocates once must have done so before the capture
            expected = call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = call()

    def replay() -> Results:
        graph.replay()
        return results

    if not all(torch.allclose(g, e, rtol=1e-5, atol=1e-5 * e.abs().max().item()) for g, e in zip(replay(), expected)):
        raise AssertionError("the replayed CUDA graph gives other results than the call it captured")
    return replay
