"""What the GPU benchmark measures: rows in order of importance, the columns of each, and the bars.

To add a row, append a `GpuRow` to `ROWS`; to add a bar, append a `GpuBar` to `BARS`. Nothing here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

# task -> what one call is, and how many batches of n rows it takes (a logit is one row times one code).
TASKS = {
    "loss": ("loss and gradient", 2),
    "loss_graph": ("loss and gradient, replayed CUDA graph", 2),
    "logsumexp": ("projector_logsumexp, forward and backward", 1),
    "projector_logsumexp": ("projector_logsumexp, forward", 1),
    "expected_code": ("expected_code, forward", 1),
    "mean_assignment": ("mean_assignment, forward", 1),
    "assign": ("assign, forward", 1),
}
FUNCTIONS = ("projector_logsumexp", "expected_code", "mean_assignment", "assign")

LIBRARY = "library:"  # the prefix of the library's columns; the backend follows
BACKENDS = ("cuda", "triton", "torch")  # those that run on GPU tensors, fastest first
# Backend "torch" makes its codes anew in every call and is there as a fallback: its column ends at this many codes,
# or at the second number where no other backend runs.
TORCH_MOST_CODES = (1 << 17, 1 << 20)


@dataclass(frozen=True)
class Column:
    """A contender other than the library.

    Attributes:
        title: heading in the tables.
        arrays: float32 arrays of shape (n, c) that a call holds at its peak, for the estimate of its memory. The
            formulas' were measured by `bench.memory` on a CPU at f = 8 (12.1 for the authors', 9.0 for the tidy one);
            under autocast two halves are added for the bfloat16 logits and their cast.
        products: matrix products of 2 n f c operations in a call, for the estimate of its time.
        precision: "float32", "tf32" or "bf16"; with bf16 the dense weight is held in bfloat16, which spares autocast
            a cast in every product.
        compiled: whether torch.compile takes its time first.
    """

    title: str
    arrays: float
    products: int
    precision: str
    compiled: bool = False

    @property
    def weight_bytes(self) -> int:
        """Bytes of one entry of the dense weight."""
        return 2 if self.precision == "bf16" else 4


COLUMNS = {
    "authors_float32": Column("auth f32", 12.1, 16, "float32"),
    "authors_tf32": Column("auth tf32", 12.1, 16, "tf32"),
    "authors_bf16": Column("auth bf16", 13.1, 16, "bf16"),
    "compiled_float32": Column("comp f32", 9.1, 4, "float32", compiled=True),
    "compiled_bf16": Column("comp bf16", 10.1, 4, "bf16", compiled=True),
    # Fused vocabulary losses: forward, recomputed logits, gradient of the rows; a chunk of the logits at most, except
    # for torch's, which may fall back to all of them.
    "cut_cross_entropy": Column("cut-cross-entropy", 0.1, 3, "bf16"),
    "liger": Column("Liger", 1.0, 3, "bf16"),
    "torch_linear_cross_entropy": Column("torch linear_cross_entropy", 3.0, 3, "bf16"),
}
AUTHORS = ("authors_float32", "authors_tf32", "authors_bf16")
COMPILED = ("compiled_bf16", "compiled_float32")
FUSED = ("cut_cross_entropy", "liger", "torch_linear_cross_entropy")


@dataclass(frozen=True)
class GpuRow:
    """One call at one size.

    Attributes:
        task: a key of `TASKS`.
        dictionary: "hadamard", "rademacher" or "dense" (a matrix of ±1).
        n: rows per view.
        num_features, num_codes: f and c.
        columns: names from `COLUMNS` that take turns with the library.
        once: one timed call instead of rounds.
    """

    task: str
    dictionary: str
    n: int
    num_features: int
    num_codes: int
    columns: tuple[str, ...] = ()
    once: bool = False

    @property
    def name(self) -> str:
        """The row's identity in JSON and bars, e.g. `loss-hadamard-n64-f128-c16384`."""
        return f"{self.task}-{self.dictionary}-n{self.n}-f{self.num_features}-c{self.num_codes}"

    @property
    def logits(self) -> int:
        """Logits of one call."""
        return TASKS[self.task][1] * self.n * self.num_codes

    def shrunk(self) -> GpuRow:
        """The same row for the dry run: tiny, and no two rows become one."""
        n = {64: 3, 256: 5, 1024: 7}[self.n]
        f = {128: 8, 384: 12, 2048: 16}[self.num_features]
        return replace(self, n=n, num_features=f, num_codes=1 << self.num_codes.bit_length() // 2)


def _loss(dictionary: str, n: int, f: int, c: int, columns: tuple[str, ...] = AUTHORS, once: bool = False) -> GpuRow:
    return GpuRow("loss", dictionary, n, f, c, columns, once)


_CODES = tuple(1 << log2 for log2 in (14, 17, 20, 22, 24))
_GRID = [_loss("hadamard", n, f, c) for n in (256, 64, 1024) for f in (2048, 128, 384) for c in _CODES]
_GRID += [_loss("rademacher", n, f, c) for n in (256, 64, 1024) for f in (2048, 128) for c in _CODES[:3]]
# Small ones, because the matrix is held in float32. The kernels are those of Rademacher codes, the bits come from memory.
_DENSE = [_loss("dense", 256, 2048, 1 << 14, ()), _loss("dense", 256, 128, 1 << 17, ())]

_MAIN = (("hadamard", 256, 2048, 1 << 20), ("hadamard", 256, 128, 1 << 20), ("rademacher", 256, 2048, 1 << 20))

_FIRST = (
    # The rows of the bars.
    _loss("hadamard", 256, 2048, 1 << 20),
    _loss("hadamard", 256, 128, 1 << 20),
    GpuRow("loss_graph", "hadamard", 64, 2048, 1 << 14),
    _loss("hadamard", 64, 128, 1 << 24, ()),  # also what the next row's time is estimated from
    _loss("hadamard", 64, 128, 1 << 30, (), once=True),
    *(_loss("hadamard", 256, f, c, ()) for c in _CODES[3:] for f in (2048, 128)),
    _loss("rademacher", 256, 2048, 1 << 20),
    _loss("rademacher", 256, 128, 1 << 20),
    *_DENSE,
    _loss("hadamard", 256, 2048, 1 << 20, ("compiled_bf16",)),
    GpuRow("logsumexp", "hadamard", 256, 2048, 1 << 20, FUSED),
    GpuRow("logsumexp", "hadamard", 256, 128, 1 << 20, FUSED),
    _loss("hadamard", 64, 2048, 1 << 14),
    *(GpuRow(task, *sizes) for sizes in _MAIN for task in FUNCTIONS),
    _loss("hadamard", 256, 2048, 1 << 20, ("compiled_float32",)),
)
_LAST = (
    _loss("hadamard", 256, 128, 1 << 20, COMPILED),
    _loss("hadamard", 64, 2048, 1 << 14, COMPILED),
)
# In order of importance: what does not fit into the time is cut off at the end. A row may come twice with other
# columns, its record is one; what has been measured is not measured again.
ROWS: tuple[GpuRow, ...] = (*_FIRST, *_GRID, *_LAST)


@dataclass(frozen=True)
class GpuBar:
    """A number that a row has to reach.

    Attributes:
        kind: "rate" (logits per second), "speedup" (times as fast as column `against`), "tensor" (fraction of the
            measured bf16 matrix rate), "memory" (peak below this fraction of `against`'s), "peak" (below so many
            bytes), "time" (below so many seconds) or "runs".
        row: name of the row.
        value: the number asked.
        against: a name from `COLUMNS`.
        goal: a number beyond the one asked, 0 for none.
        backend: whose bar it is; "": the fastest's.
    """

    kind: str
    row: str
    value: float = 0.0
    against: str = ""
    goal: float = 0.0
    backend: str = ""


_H, _R = "loss-hadamard-n256-f2048-c", "loss-rademacher-n256-f"
_TRITON_BARS = (
    *(GpuBar("rate", f"{_H}{1 << log2}", 0.12e12) for log2 in (20, 22, 24)),
    GpuBar("speedup", f"{_H}{1 << 20}", 25.0, "authors_float32"),
    GpuBar("speedup", f"{_H}{1 << 20}", 2.5, "compiled_bf16"),
    GpuBar("memory", f"{_H}{1 << 20}", 0.01, "authors_float32"),
    GpuBar("tensor", f"{_R}2048-c{1 << 20}", 0.50),
    GpuBar("rate", f"{_R}128-c{1 << 20}", 0.2e12),
    GpuBar("runs", f"loss-hadamard-n64-f128-c{1 << 30}"),
)
_CUDA_BARS = (
    *(GpuBar("rate", f"{_H}{1 << log2}", 0.15e12, goal=0.25e12) for log2 in (20, 22, 24)),
    *(GpuBar("rate", f"loss-hadamard-n256-f128-c{1 << log2}", 0.25e12, goal=0.5e12) for log2 in (20, 22, 24)),
    GpuBar("time", f"loss-hadamard-n64-f128-c{1 << 30}", 0.5),
    GpuBar("peak", f"loss-hadamard-n64-f128-c{1 << 30}", 6e9),
    GpuBar("time", f"loss_graph-hadamard-n64-f2048-c{1 << 14}", 1e-4),
)
# All for an H200.
BARS = (
    *(replace(bar, backend="cuda") for bar in _CUDA_BARS),
    *(replace(bar, backend="triton") for bar in _TRITON_BARS),
)


def plan(dry_run: bool) -> tuple[tuple[GpuRow, ...], tuple[GpuBar, ...]]:
    """Rows and bars; for the dry run shrunk, without the grid's other batch sizes, which take the same way, and with
    the bars held against whatever backend runs.
    """
    if not dry_run:
        return ROWS, BARS
    rows = [*_FIRST, *(row for row in _GRID if row.n == 256), *_LAST]
    small = {row.name: row.shrunk().name for row in rows}
    return tuple(row.shrunk() for row in rows), tuple(replace(bar, row=small[bar.row], backend="") for bar in BARS)
