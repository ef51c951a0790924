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
    """A number that a backend has to reach in a row.

    Attributes:
        backend: whose it is.
        kind: "rate" (logits a second), "time" (seconds of a call; infinite: it runs), "peak" (bytes), "speedup" (times as
            fast as the formula `against`), "memory" (peak as a share of that of `against` with its dense dictionary) or
            "tensor" (share of the bf16 matrix rate, counting five products of data in two halves: 20 f a logit).
        value: the least, or the most for "time", "peak" and "memory".
        against: a name from `FORMULAS`.
    """

    backend: str
    kind: str
    value: float
    against: str = ""


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
        """After so long something hangs; compiling a formula tries many kernels."""
        return 60.0 + 60.0 * sum(FORMULAS[name][0] for name in self.beside)

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
        _CUDA_RATE[2048], _TRITON_RATE, Target("triton", "speedup", 25, "eager"), Target("triton", "memory", 0.01, "eager"))),
    Row("loss", "hadamard", 256, 128, 20, EAGER, (_CUDA_RATE[128],)),
    Row("loss_graph", "hadamard", 64, 2048, 14, (), (Target("cuda", "time", 1e-4),)),
    Row("loss", "hadamard", 64, 128, 30, (), (
        Target("cuda", "time", 0.5), Target("cuda", "peak", 6e9), Target("triton", "time", math.inf))),
    *(Row("loss", "hadamard", 256, 2048, log2, (), (_CUDA_RATE[2048], _TRITON_RATE)) for log2 in (22, 24)),
    *(Row("loss", "hadamard", 256, 128, log2, (), (_CUDA_RATE[128],)) for log2 in (22, 24)),
    Row("loss", "rademacher", 256, 2048, 20, (), (Target("triton", "tensor", 0.5),)),
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


def judge(row: Row, entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One object per target of a row: `backend`, `target` (in words), `measured` (as text), `met`.

    Args:
        row: with the targets.
        entry: what `bench.gpu.measure` noted of it.

    Returns:
        `met` is None where what the target needs was not measured, False where the backend failed or was wrong.
    """
    found = []
    for target in row.targets:
        cell, other = entry["cells"].get(target.backend, {}), entry["cells"].get(target.against, {})
        text, measured, shown = _MEASURES[target.kind](row, target, cell, other, entry)
        least = target.kind in ("rate", "speedup", "tensor")
        met = None if measured is None else measured >= target.value if least else measured < target.value
        if entry["wrong"] or "wrong" in cell or "error" in cell:
            met = False
        found.append({"backend": target.backend, "target": text, "measured": "-" if measured is None else shown(measured),
                      "met": met})  # fmt: skip
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


def _tensor(row, target, cell, other, entry):
    logits, matrix = rate(row, cell), entry.get("bf16_rate")
    share = None if logits is None or matrix is None else 20 * row.f * logits / matrix
    return f"at least {target.value:.0%} of the bf16 matrix rate", share, "{:.0%}".format


def _memory(row, target, cell, other, entry):
    own, theirs = cell.get("peak_bytes"), other.get("peak_bytes")
    share = None if own is None or theirs is None else own / (theirs + 4 * row.f * 2**row.log2_codes)
    return f"peak below {target.value:.0%} of that of {target.against}, dictionary included", share, "{:.2%}".format


_MEASURES = {
    "rate": lambda row, t, cell, *_: (f"at least {t.value:.2g} logits/s", rate(row, cell), "{:.3g}".format),
    "time": lambda row, t, cell, *_: (f"below {t.value:g} s" if t.value < math.inf else "runs", cell.get("median"),
                                      "{:.3g} s".format),
    "peak": lambda row, t, cell, *_: (f"peak below {t.value / 1e9:g} GB", cell.get("peak_bytes"),
                                      lambda size: f"{size / 1e9:.3g} GB"),
    "speedup": lambda row, t, cell, other, _: (f"at least {t.value:g}x as fast as {t.against}", ratio(other, cell),
                                               "{:.1f}x".format),
    "memory": _memory,
    "tensor": _tensor,
}  # fmt: skip
