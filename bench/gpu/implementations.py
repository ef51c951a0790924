"""Builds what the GPU benchmark times: the problem of a row, the call of each column, the check against float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import cplearn_kernels as cpk
from bench.accuracy import LIBRARY_LIMIT, compare
from bench.formulas import authors_loss, tidy_loss
from bench.gpu.rows import FORMULAS, Row

Results = tuple[Tensor, ...]
# Operations in float64 that a check may cost: below a second even where float64 runs at 1/64 of the float32 rate.
_CHECK_OPERATIONS = 1e11
_SLICE = 1 << 26  # entries of the dense dictionary made at a time: its bits pass through int64


class Problem:
    """Inputs of a row on the device: two views of a batch (unit rows, cosine about 0.7), dictionary, temperature.

    Args:
        row: the sizes.
        device: where the embeddings live.
        num_codes: another number of codes, for the check; the temperature stays that of the row.
    """

    def __init__(self, row: Row, device: torch.device, num_codes: int | None = None) -> None:
        self.row, self.device, codes = row, device, 1 << row.log2_codes
        kind = cpk.HadamardDictionary if row.dictionary == "hadamard" else cpk.RademacherDictionary
        self.dictionary = kind(row.f, num_codes or codes, seed=0).to(device)
        if row.dictionary == "dense":
            self.dictionary = cpk.DenseDictionary(self.dictionary.to_dense(device=device))
        self.temperature = cpk.default_temperature(row.f, codes, embedding="l2")
        generator = torch.Generator().manual_seed(0)
        first = torch.randn(row.n, row.f, generator=generator)
        second = first + torch.randn(row.n, row.f, generator=generator)
        self.h1, self.h2 = (torch.nn.functional.normalize(view).to(device).requires_grad_() for view in (first, second))
        self._weights: dict[torch.dtype, Tensor] = {}

    def weight(self, dtype: torch.dtype) -> Tensor:
        """The dense dictionary, shape (f, c), made once."""
        if dtype not in self._weights:
            f, c = self.row.f, self.dictionary.num_codes
            weight = self._weights[dtype] = torch.empty(f, c, dtype=dtype, device=self.device)
            step = max(_SLICE // f, 1)
            for start in range(0, c, step):
                stop = min(start + step, c)
                weight[:, start:stop] = self.dictionary.to_dense(start, stop, dtype=dtype, device=self.device)
        return self._weights[dtype]


def build(column: str, problem: Problem, dry_run: bool = False) -> Callable[[], Results]:
    """The call that is timed for a column, a backend or a name from `FORMULAS`; it returns the results, the loss first.

    In a dry run torch.compile only traces, which takes no compiler and seconds instead of a minute.
    """
    if column not in FORMULAS:
        return _library(column, problem)
    compiled, precision = FORMULAS[column]
    weight, formula = problem.weight(torch.bfloat16 if precision == "bf16" else torch.float32), authors_loss
    if compiled:
        options = {"backend": "eager"} if dry_run else {"mode": "max-autotune"}
        formula = torch.compile(tidy_loss, dynamic=False, **options)
        # Or the CUDA graph that max-autotune makes would copy the dictionary into a place of its own in every call.
        torch._dynamo.mark_static_address(weight)

    def call() -> Results:
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        if compiled:
            torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(problem.device.type, torch.bfloat16, enabled=precision == "bf16"):
            value = formula(problem.h1, problem.h2, weight, problem.temperature)
        return value.detach(), *torch.autograd.grad(value, (problem.h1, problem.h2))

    return call


def _library(backend: str, problem: Problem) -> Callable[[], Results]:
    h1, h2, dictionary, task = problem.h1, problem.h2, problem.dictionary, problem.row.task
    options: dict[str, Any] = {"temperature": problem.temperature, "backend": backend}

    def differentiated() -> Results:
        torch.set_float32_matmul_precision("highest")
        if task == "logsumexp":
            value = cpk.projector_logsumexp(h1, dictionary, **options).sum()
            return value.detach(), *torch.autograd.grad(value, (h1,))
        value = cpk.cplearn_loss(h1, h2, dictionary, **options)
        return value.detach(), *torch.autograd.grad(value, (h1, h2))

    def forward() -> Results:
        torch.set_float32_matmul_precision("highest")
        with torch.no_grad():
            if task == "assign":
                return (cpk.assign(h1, dictionary, backend=backend)[0],)
            return (getattr(cpk, task)(h1, dictionary, **options),)

    if task == "loss_graph" and problem.device.type == "cuda":
        return _captured(differentiated)
    return differentiated if task in ("loss", "loss_graph", "logsumexp") else forward


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


def check(backend: str, row: Row, device: torch.device) -> tuple[dict[str, float], bool]:
    """Errors of a backend against the float64 reference on the row's n, f and dictionary.

    Returns:
        The errors and whether they are within the library's tolerances: `loss` and `gradient` on the scales of the
        tests for the loss; else `error`, the largest difference of a result in norm, relative to its norm. `num_codes`
        is the number of codes checked: all, or as many as their float64 products afford, an odd number.
    """
    # A graph is checked as what it captures; `_captured` compares its replay with that.
    row = replace(row, task="loss") if row.task == "loss_graph" else row
    codes = min(1 << row.log2_codes, max(int(_CHECK_OPERATIONS / (12 * row.n * row.f)), 256) | 1)
    problem = Problem(row, device, codes)
    got = _library(backend, problem)()
    problem.h1, problem.h2 = (h.detach().double().requires_grad_() for h in (problem.h1, problem.h2))
    expected = _library("reference", problem)()
    if row.task == "loss":
        found = compare(got, expected, problem.temperature)
        return {"num_codes": codes, "loss": found.loss, "gradient": found.gradient}, found.within(LIBRARY_LIMIT)
    # Expected codes of a nearly uniform softmax are close to zero, where an error relative to them would mean nothing.
    floor = 1e-2 if row.task == "expected_code" else 0.0
    error = max(
        ((g.double() - e).norm() / e.norm().clamp_min(floor * e.numel() ** 0.5)).item() for g, e in zip(got, expected)
    )
    return {"num_codes": codes, "error": error}, error <= LIBRARY_LIMIT.gradient
