"""What is measured on a GPU, in order of importance, and what is asked of it; targets are set for an H200.

To add a measurement, append a `Row` to `ROWS`. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bench.timing import ratios, spread

# task -> batches of n rows that a call takes (a logit is one row times one code). "logsumexp" is forward and backward;
# the functions after it are forward alone.
TASKS = {"loss": 2, "loss_graph": 2, "logsumexp": 1, "projector_logsumexp": 1, "expected_code": 1, "mean_assignment": 1,
         "assign": 1}  # fmt: skip
BACKENDS = ("cuda", "triton", "torch")  # of the library: those that run on GPU tensors
TORCH_MOST_LOG2_CODES = 20  # backend "torch" makes its codes anew in every call and is there as a fallback
# The formulas of bench.formulas: (compiled, precision). They hold the dense dictionary, with bf16 in bfloat16.
FORMULAS = {
    "eager": (False, "float32"), "eager tf32": (False, "tf32"), "eager bf16": (False, "bf16"),
    "compiled": (True, "float32"), "compiled bf16": (True, "bf16"),
}  # fmt: skip
EAGER, COMPILED = tuple(FORMULAS)[:3], tuple(FORMULAS)[3:]


@dataclass(frozen=True)
class Target:
    """What a backend has to reach in a row: `kind` "rate" (at least so many logits a second), "time" (below so many seconds
    a call; infinite: it runs), "peak" (below so many bytes) or "speedup" (so many times as fast as formula `against`).
    """

    backend: str
    kind: str
    value: float
    against: str = ""

    def __str__(self) -> str:
        if self.kind == "time" and self.value == math.inf:
            return "runs"
        return {"rate": f"at least {self.value:.2g} logits/s", "time": f"below {self.value:g} s",
                "peak": f"peak below {self.value / 1e9:g} GB",
                "speedup": f"at least {self.value:g}x as fast as {self.against}"}[self.kind]  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One call at one size: `n` rows per view, `f` features, 2^`log2_codes` codes, beside which formulas."""

    task: str
    dictionary: str
    n: int
    f: int
    log2_codes: int
    beside: tuple[str, ...] = ()
    targets: tuple[Target, ...] = ()

    @property
    def size(self) -> str:
        """As the table shows it, e.g. `loss hadamard n=64 f=128 c=2^14`."""
        return f"{self.task} {self.dictionary} n={self.n} f={self.f} c=2^{self.log2_codes}"

    @property
    def name(self) -> str:
        """The row's identity in the record; a size may be measured again beside other formulas."""
        return self.size + (f" beside {self.beside[0]}" if self.beside else "")

    @property
    def logits(self) -> int:
        """Logits of one call."""
        return TASKS[self.task] * self.n << self.log2_codes

    @property
    def seconds(self) -> float:
        """After so long something hangs: Triton compiles for half a minute, and torch.compile tries many kernels."""
        return 120.0 + 60.0 * sum(FORMULAS[name][0] for name in self.beside)

    def columns(self, backends: tuple[str, ...]) -> tuple[str, ...]:
        """What takes turns: these backends of the library where they make sense, then the formulas."""
        no_torch = self.log2_codes > TORCH_MOST_LOG2_CODES or self.task == "loss_graph"
        return tuple(name for name in backends if not (name == "torch" and no_torch)) + self.beside

    def shrunk(self) -> Row:
        """The same row for the dry run: tiny, and no two rows become one."""
        n, f = {64: 3, 256: 5, 1024: 7}[self.n], {128: 8, 384: 12, 2048: 16}[self.f]
        return replace(self, n=n, f=f, log2_codes=self.log2_codes // 2)


_CUDA_RATE = {2048: Target("cuda", "rate", 0.15e12), 128: Target("cuda", "rate", 0.25e12)}
_TRITON_RATE = Target("triton", "rate", 0.12e12)
_FIRST = (
    Row("loss", "hadamard", 256, 2048, 20, EAGER, (
        _CUDA_RATE[2048], _TRITON_RATE, Target("triton", "speedup", 25, "eager"),
        Target("triton", "peak", 0.21e9))),  # 1 % of what the formula takes with its dictionary
    Row("loss", "hadamard", 256, 128, 20, EAGER, (_CUDA_RATE[128],)),
    Row("loss_graph", "hadamard", 64, 2048, 14, (), (Target("cuda", "time", 1e-4),)),
    Row("loss", "hadamard", 64, 128, 30, (), (
        Target("cuda", "time", 0.5), Target("cuda", "peak", 6e9), Target("triton", "time", math.inf))),
    *(Row("loss", "hadamard", 256, 2048, log2, (), (_CUDA_RATE[2048], _TRITON_RATE)) for log2 in (22, 24)),
    *(Row("loss", "hadamard", 256, 128, log2, (), (_CUDA_RATE[128],)) for log2 in (22, 24)),
    # Half of 790e12 bf16 operations a second, at five products of data in two halves: 20 f operations a logit.
    Row("loss", "rademacher", 256, 2048, 20, (), (Target("triton", "rate", 9.6e9),)),
    Row("loss", "rademacher", 256, 128, 20, (), (Target("triton", "rate", 0.2e12),)),
    Row("loss", "hadamard", 256, 2048, 20, COMPILED[::-1], (Target("triton", "speedup", 2.5, "compiled bf16"),)),
    # The kernels of dense dictionaries are those of Rademacher codes, with bits from memory; the matrix is in float32.
    Row("loss", "dense", 256, 2048, 14), Row("loss", "dense", 256, 128, 17),
    Row("loss", "hadamard", 64, 2048, 14, EAGER),
    *(Row(task, kind, 256, f, 20) for kind, f in (("hadamard", 2048), ("hadamard", 128), ("rademacher", 2048))
      for task in TASKS if task not in ("loss", "loss_graph")),
)  # fmt: skip
_GRID = [
    Row("loss", "hadamard", n, f, log2) for n in (256, 64, 1024) for f in (2048, 128, 384) for log2 in (14, 17, 20, 24)
]
_GRID += [Row("loss", "rademacher", n, f, log2) for n in (256, 64) for f in (2048, 128) for log2 in (14, 17)]
_LAST = (Row("loss", "hadamard", 256, 128, 20, COMPILED), Row("loss", "hadamard", 64, 2048, 14, COMPILED))
_KNOWN = {row.size for row in _FIRST}
# What does not fit into the time is cut off at the end.
ROWS = (*_FIRST, *(row for row in _GRID if row.size not in _KNOWN), *_LAST)


def judge(row: Row, entry: Mapping[str, Any]) -> list[tuple[Target, float | None, bool | None]]:
    """(target, what was measured, whether it is met) of a row that `bench.gpu.measure` noted as `entry`.

    Met is None where what the target needs was not measured, False where the backend failed or was wrong.
    """
    found = []
    for target in row.targets:
        cell, other = entry["cells"].get(target.backend, {}), entry["cells"].get(target.against, {})
        measured = {"rate": rate(row, cell), "time": cell.get("median"), "peak": cell.get("peak_bytes"),
                    "speedup": ratio(other, cell)}[target.kind]  # fmt: skip
        least = target.kind in ("rate", "speedup")
        met = None if measured is None else measured >= target.value if least else measured < target.value
        failed = entry["wrong"] or "wrong" in cell or "error" in cell
        found.append((target, measured, False if failed else met))
    return found


def ratio(slower: Mapping[str, Any], faster: Mapping[str, Any]) -> float | None:
    """How many times as long one cell took as another: round by round where both took turns."""
    if "median" not in slower or "median" not in faster:
        return None
    if len(slower["seconds"]) != len(faster["seconds"]):
        return slower["median"] / faster["median"]
    return spread(ratios(slower["seconds"], faster["seconds"]))["median"]


def rate(row: Row, cell: Mapping[str, Any]) -> float | None:
    """Logits a second."""
    return row.logits / cell["median"] if "median" in cell else None
