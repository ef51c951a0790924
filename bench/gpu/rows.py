"""What is measured on a GPU, in order of importance, and what is asked of it; targets are set for an H200.

A case's implementations are the formulas beside which the library's backends take turns. To add a measurement, append
a case to `ROWS`. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bench.cases import Case
from bench.targets import Target, Verdict
from bench.timing import ratios, spread

BACKENDS = ("cuda", "triton", "torch")  # of the library: those that run on GPU tensors
TORCH_MOST_CODES = 1 << 20  # backend "torch" makes its codes anew in every call and is there as a fallback
EAGER, COMPILED = ("eager", "eager tf32", "eager bf16"), ("compiled bf16", "compiled")

_CUDA_2048, _CUDA_128 = Target("rate", 0.15e12, of="cuda"), Target("rate", 0.25e12, of="cuda")
_TRITON = Target("rate", 0.12e12, of="triton")
_FIRST = (
    Case(256, 2048, 1 << 20, EAGER, (
        _CUDA_2048, _TRITON, Target("speed", 25, "eager", "triton"),
        Target("memory", 210, of="triton"))),  # 1 % of what the formula takes with its dictionary
    Case(256, 128, 1 << 20, EAGER, (_CUDA_128,)),
    Case(64, 2048, 1 << 14, (), (Target("time", 1e-4, of="cuda"),), function="loss_graph"),
    Case(64, 128, 1 << 30, (), (
        Target("time", 0.5, of="cuda"), Target("memory", 6000, of="cuda"), Target("time", math.inf, of="triton"))),
    *(Case(256, 2048, 1 << log2, (), (_CUDA_2048, _TRITON)) for log2 in (22, 24)),
    *(Case(256, 128, 1 << log2, (), (_CUDA_128,)) for log2 in (22, 24)),
    # Half of 790e12 bf16 operations a second, at five products of data in two halves: 20 f operations a logit.
    Case(256, 2048, 1 << 20, (), (Target("rate", 9.6e9, of="triton"),), "rademacher"),
    Case(256, 128, 1 << 20, (), (Target("rate", 0.2e12, of="triton"),), "rademacher"),
    Case(256, 2048, 1 << 20, COMPILED, (Target("speed", 2.5, "compiled bf16", "triton"),)),
    # The kernels of dense dictionaries are those of Rademacher codes, with bits from memory; the matrix is in float32.
    Case(256, 2048, 1 << 14, (), (), "dense"), Case(256, 128, 1 << 17, (), (), "dense"),
    Case(64, 2048, 1 << 14, EAGER),
    *(Case(256, f, 1 << 20, (), (), kind, function)
      for kind, f in (("hadamard", 2048), ("hadamard", 128), ("rademacher", 2048))
      for function in ("projector_logsumexp", "expected_code", "mean_assignment", "assign")),
)  # fmt: skip
_GRID = [Case(n, f, 1 << log2, ()) for n in (256, 64, 1024) for f in (2048, 128, 384) for log2 in (14, 17, 20, 24)]
_GRID += [Case(n, f, 1 << log2, (), (), "rademacher") for n in (256, 64) for f in (2048, 128) for log2 in (14, 17)]
_LAST = (Case(256, 128, 1 << 20, COMPILED[::-1]), Case(64, 2048, 1 << 14, COMPILED[::-1]))
# What does not fit into the time is cut off at the end.
ROWS = (*_FIRST, *(row for row in _GRID if row.name not in {first.name for first in _FIRST}), *_LAST)


def step_of(row: Case) -> str:
    """The row's identity in the record; a size may be measured again beside other formulas."""
    return row.name + (f" beside {row.implementations[0]}" if row.implementations else "")


def tiny(row: Case) -> Case:
    """The row for the dry run."""
    return replace(row.shrunk(), num_features=row.num_features // 16)


def columns(row: Case, backends: tuple[str, ...]) -> tuple[str, ...]:
    """What takes turns: these backends of the library where they make sense, then the formulas."""
    no_torch = row.num_codes > TORCH_MOST_CODES or row.function == "loss_graph"
    return tuple(name for name in backends if not (name == "torch" and no_torch)) + row.implementations


def most_seconds(row: Case) -> float:
    """After so long something hangs: Triton compiles for half a minute, and torch.compile tries many kernels."""
    return 120.0 + 60.0 * sum(name.startswith("compiled") for name in row.implementations)


def judge(row: Case, entry: Mapping[str, Any]) -> list[tuple[Target, Verdict | None, bool | None]]:
    """(target, verdict, whether it is met) of a row that `bench.gpu.measure` noted as `entry`.

    Met is None where what the target needs was not measured, False where the backend failed or was wrong.
    """
    found = []
    for target in row.targets:
        cell, verdict = entry["cells"].get(target.of, {}), target.judge(entry["cells"], row.logits)
        failed = entry["wrong"] or "wrong" in cell or "error" in cell
        found.append((target, verdict, False if failed else verdict and verdict["met"]))
    return found


def ratio(slower: Mapping[str, Any], faster: Mapping[str, Any]) -> float | None:
    """How many times as long one cell took as another, the median over the rounds."""
    if "seconds" in slower and "seconds" in faster:
        return spread(ratios(slower["seconds"], faster["seconds"]))["median"]
    return None
