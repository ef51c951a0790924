"""Builds what the GPU benchmark times: the problem of a row, the call of each column, its estimates, its check."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any, Callable

import torch
from torch import Tensor

import cplearn_kernels as cpk
from bench.accuracy import LIBRARY_LIMIT, compare
from bench.formulas import authors_loss, tidy_loss
from bench.gpu_rows import COLUMNS, FUSED, LIBRARY, GpuRow
from bench.gpu_timing import set_precision

Results = tuple[Tensor, ...]
_PACKAGES = {"cut_cross_entropy": "cut_cross_entropy", "liger": "liger_kernel"}
# Operations in float64 that a check may cost: below a second even where float64 runs at 1/64 of the float32 rate.
_CHECK_OPERATIONS = 1e11
_SLICE = 1 << 26  # entries of the dense weight made at a time: its bits pass through int64


class WrongResult(Exception):
    """A column ran and gave something else than it should."""


class Problem:
    """Inputs of a row on the device: two views of a batch (unit rows, cosine about 0.7), dictionary, temperature.

    Args:
        row: the sizes.
        device: where the embeddings live.
        num_codes: another number of codes, for the check; the temperature stays that of the row.
    """

    def __init__(self, row: GpuRow, device: torch.device, num_codes: int | None = None) -> None:
        self.row, self.device = row, device
        kind = cpk.HadamardDictionary if row.dictionary == "hadamard" else cpk.RademacherDictionary
        self.dictionary = kind(row.num_features, num_codes or row.num_codes, seed=0).to(device)
        if row.dictionary == "dense":
            self.dictionary = cpk.DenseDictionary(self.dictionary.to_dense(device=device))
        self.temperature = cpk.default_temperature(row.num_features, row.num_codes, embedding="l2")
        generator = torch.Generator().manual_seed(0)
        first = torch.randn(row.n, row.num_features, generator=generator)
        second = first + torch.randn(row.n, row.num_features, generator=generator)
        self.h1, self.h2 = (torch.nn.functional.normalize(view).to(device).requires_grad_() for view in (first, second))


class DenseWeights:
    """The dense weights of one dictionary, kept while rows of the same dictionary follow each other."""

    def __init__(self) -> None:
        self._key: Any = None
        self._held: dict[tuple[torch.dtype, bool], Tensor] = {}

    def turn_to(self, problem: Problem) -> None:
        """Drops what belongs to another dictionary."""
        key = problem.dictionary.identity()
        if key != self._key:
            self._key, self._held = key, {}

    def missing_bytes(self, column: str, problem: Problem) -> int:
        """Bytes that the weight of `column` will take, 0 when it is held."""
        held = self._layout(column) in self._held
        return 0 if held else weight_bytes(column, problem.row)

    def get(self, column: str, problem: Problem) -> Tensor:
        """(f, c) for the formulas, (c, f) for the vocabulary losses."""
        layout = self._layout(column)
        if layout not in self._held:
            self._held[layout] = _dense(problem, *layout)
        return self._held[layout]

    @staticmethod
    def _layout(column: str) -> tuple[torch.dtype, bool]:
        return (torch.bfloat16 if COLUMNS[column].precision == "bf16" else torch.float32), column in FUSED


def _dense(problem: Problem, dtype: torch.dtype, codes_first: bool) -> Tensor:
    f, c = problem.row.num_features, problem.row.num_codes
    weight = torch.empty((c, f) if codes_first else (f, c), dtype=dtype, device=problem.device)
    step = max(_SLICE // f, f)
    for start in range(0, c, step):
        stop = min(start + step, c)
        part = problem.dictionary.to_dense(start, stop, dtype=dtype, device=problem.device)
        if codes_first:
            weight[start:stop] = part.T
        else:
            weight[:, start:stop] = part
    return weight


def weight_bytes(column: str, row: GpuRow) -> int:
    """Bytes of the dense weight that a column holds besides its call; the library's is 0."""
    if column.startswith(LIBRARY):
        return 0
    return COLUMNS[column].weight_bytes * row.num_features * row.num_codes


def estimated_bytes(column: str, row: GpuRow) -> int:
    """Peak of a call of a formula above inputs and weight: `Column.arrays` float32 arrays of shape (n, c)."""
    return int(4 * COLUMNS[column].arrays * row.n * row.num_codes)


def estimated_seconds(column: str, row: GpuRow, rates: dict[str, Any]) -> float:
    """Time of a call of a formula: its products and about six passes over each of its arrays, at 60 % of the rates."""
    kind = COLUMNS[column]
    operations = 2.0 * kind.products * row.n * row.num_features * row.num_codes
    moved = 6 * estimated_bytes(column, row)
    return (operations / rates["matmul"][kind.precision] + moved / rates["copy_bytes_per_second"]) / 0.6


def missing_package(column: str) -> str | None:
    """"not installed", or None where the column needs nothing that is missing."""
    if column == "torch_linear_cross_entropy":
        present = hasattr(torch.nn.functional, "linear_cross_entropy")
        return None if present else f"not installed: torch {torch.__version__} has none"
    package = _PACKAGES.get(column)
    return "not installed" if package is not None and importlib.util.find_spec(package) is None else None


def build(column: str, problem: Problem, weights: DenseWeights, dry_run: bool = False) -> Callable[[], Results]:
    """The call that is timed for `column`; it returns the results, the loss first.

    Args:
        column: "library:" and a backend, or a name from `COLUMNS`.
        problem: the inputs.
        weights: makes or holds the dense weight.
        dry_run: torch.compile only traces, which takes no compiler and seconds instead of a minute.
    """
    if column.startswith(LIBRARY):
        return _library(column[len(LIBRARY) :], problem)
    if column in FUSED:
        return _vocabulary_loss(column, problem, weights.get(column, problem))
    kind = COLUMNS[column]
    formula, weight, device = authors_loss, weights.get(column, problem), problem.device.type
    if kind.compiled:
        options = {"backend": "eager"} if dry_run else {"mode": "max-autotune"}
        formula = torch.compile(tidy_loss, dynamic=False, **options)
        # Or the CUDA graph that max-autotune makes would copy the weight into a place of its own in every call.
        torch._dynamo.mark_static_address(weight)

    def call() -> Results:
        set_precision(kind.precision)
        if kind.compiled:
            torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(device, torch.bfloat16, enabled=kind.precision == "bf16"):
            value = formula(problem.h1, problem.h2, weight, problem.temperature)
        return value.detach(), *torch.autograd.grad(value, (problem.h1, problem.h2))

    return call


def _library(backend: str, problem: Problem) -> Callable[[], Results]:
    h1, h2, dictionary = problem.h1, problem.h2, problem.dictionary
    task, options = problem.row.task, {"temperature": problem.temperature, "backend": backend}

    def loss() -> Results:
        set_precision("float32")
        value = cpk.cplearn_loss(h1, h2, dictionary, **options)
        return value.detach(), *torch.autograd.grad(value, (h1, h2))

    def logsumexp() -> Results:
        set_precision("float32")
        value = cpk.projector_logsumexp(h1, dictionary, **options).sum()
        return value.detach(), *torch.autograd.grad(value, (h1,))

    def function() -> Results:
        set_precision("float32")
        with torch.no_grad():
            if task == "assign":
                return (cpk.assign(h1, dictionary, backend=backend)[0],)
            return (getattr(cpk, task)(h1, dictionary, **options),)

    if task == "loss_graph":
        return _captured(loss, problem.device)
    return {"loss": loss, "logsumexp": logsumexp}.get(task, function)


def _captured(call: Callable[[], Results], device: torch.device) -> Callable[[], Results]:
    """The replay of a CUDA graph of the call; the call itself where there are no such graphs."""
    if device.type != "cuda":
        return call
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
        raise WrongResult("the replayed CUDA graph gives other results than the call it captured")
    return replay


def _vocabulary_loss(column: str, problem: Problem, weight: Tensor) -> Callable[[], Results]:
    """A fused cross entropy of the rows over all codes: a log-sum-exp and one logit, forward and backward, in bf16."""
    rows = (problem.h1.detach() / problem.temperature).bfloat16().requires_grad_()
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(problem.row.num_codes, (problem.row.n,), generator=generator).to(problem.device)
    if column == "cut_cross_entropy":
        from cut_cross_entropy import linear_cross_entropy

        def loss() -> Tensor:
            return linear_cross_entropy(rows, weight, targets, reduction="sum")
    elif column == "liger":
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        module = LigerFusedLinearCrossEntropyLoss(reduction="sum")

        def loss() -> Tensor:
            return module(weight, rows, targets)
    else:
        chunked = getattr(torch.nn, "LinearCrossEntropyOptions", None)
        options = {} if chunked is None else {"options": chunked()}

        def loss() -> Tensor:
            return torch.nn.functional.linear_cross_entropy(rows, weight, targets, reduction="sum", **options)

    def call() -> Results:
        value = loss()
        return value.detach(), *torch.autograd.grad(value, (rows,))

    return call


def checked_codes(row: GpuRow) -> int:
    """Codes of the check: all, or as many as its float64 products afford, an odd number."""
    return min(row.num_codes, max(int(_CHECK_OPERATIONS / (12 * row.n * row.num_features)), 256) | 1)


def check(column: str, row: GpuRow, device: torch.device) -> dict[str, Any]:
    """Errors of the library against the float64 reference on the row's n, f and dictionary.

    Returns:
        `num_codes`; `loss` and `gradient` (scales of design section 6) for the loss, `error` for other tasks: the
        largest difference of a result in norm, relative to its norm; and `agrees`.
    """
    # A graph is checked as what it captures; `_captured` compares its replay with that.
    row = replace(row, task="loss") if row.task == "loss_graph" else row
    problem = Problem(row, device, checked_codes(row))
    got = _library(column[len(LIBRARY) :], problem)()
    problem.h1, problem.h2 = (h.detach().double().requires_grad_() for h in (problem.h1, problem.h2))
    expected = _library("reference", problem)()
    found: dict[str, Any] = {"num_codes": problem.dictionary.num_codes}
    if row.task == "loss":
        agreement = compare(got, expected, problem.temperature)
        return {**found, **agreement.as_dict(), "agrees": agreement.within(LIBRARY_LIMIT)}
    # Expected codes of a nearly uniform softmax are close to zero, where an error relative to them would mean nothing.
    floor = 1e-2 if row.task == "expected_code" else 0.0
    error = max(
        ((g.double() - e).norm() / e.norm().clamp_min(floor * e.numel() ** 0.5)).item() for g, e in zip(got, expected)
    )
    return {**found, "error": error, "agrees": error <= LIBRARY_LIMIT.gradient}

