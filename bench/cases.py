"""What is measured: the rows of the benchmark, their columns, and the bars they have to reach.

To add a row, append a `Row` to `ROWS`; to add a bar, give the row a `Bar`. Everything else (timing, memory,
JSON, tables, plot) follows from the lists in this file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

LIBRARY = "library"
ONE_THREAD = "one_thread"
COLUMN_TITLES = {
    LIBRARY: "cplearn-kernels",
    ONE_THREAD: "cplearn-kernels, one thread",
    "eager": "authors' formula, eager",
    "tidy": "tidy formula, eager",
    "compiled": "tidy formula, torch.compile",
}
ALL_COLUMNS = tuple(COLUMN_TITLES)
# The formulas in PyTorch, which hold the whole dictionary.
FORMULAS = ("eager", "tidy", "compiled")

# One megabyte, as in the bars: a million bytes, not 2**20.
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Bar:
    """The library must be at least `at_least` times as fast as column `against`, forward + backward."""

    against: str
    at_least: float


@dataclass(frozen=True)
class RateBar:
    """The library must process at least this many logits per second, forward + backward."""

    at_least: float


@dataclass(frozen=True)
class MemoryBar:
    """The library's peak on `row` may exceed that on `baseline` by less than `below_megabytes`.

    Without a baseline: what the process held before the call, inputs included.
    """

    row: str
    baseline: str | None
    below_megabytes: float


@dataclass(frozen=True)
class LinearBar:
    """The library's time per code on `rows` may differ from that of the last by at most the fraction `within`.

    What counts is the median over rounds in which all rows took turns.
    """

    rows: tuple[str, ...]
    within: float


@dataclass(frozen=True)
class Row:
    """One problem size and the columns measured on it.

    Attributes:
        n: rows per view.
        num_features: f, the length of an embedding.
        num_codes: c, the number of codes.
        columns: names from `COLUMN_TITLES`; the library always comes first.
        bars: speed bars, each against one of `columns`, and at most one `RateBar`.
        dictionary: which dictionary holds the codes: "hadamard" or "rademacher".
        full_only: measured only under `--benchmark-full`.
    """

    n: int
    num_features: int
    num_codes: int
    columns: tuple[str, ...] = (LIBRARY, *FORMULAS)
    bars: tuple[Bar | RateBar, ...] = ()
    dictionary: str = "hadamard"
    full_only: bool = False

    @property
    def name(self) -> str:
        """The row's identity in test ids, JSON and bars, e.g. `hadamard-n64-f128-c16384`."""
        return f"{self.dictionary}-n{self.n}-f{self.num_features}-c{self.num_codes}"

    @property
    def logits(self) -> int:
        """Logits of one call: n rows of two views against c codes."""
        return 2 * self.n * self.num_codes

    def shrunk(self) -> Row:
        """The same row small enough for the check without `--benchmark`: f stays, n and c shrink to odd sizes."""
        num_codes = min(max(self.num_codes >> 6, 100), (1 << 14) + (self.num_codes >> 12))
        return replace(self, n=(self.n >> 3) + 3, num_codes=num_codes + 1)


ROWS = (
    Row(64, 2048, 1 << 14, bars=(Bar("eager", 25.0),)),
    Row(64, 2048, 1 << 16, columns=ALL_COLUMNS,
        bars=(Bar("eager", 80.0), Bar("compiled", 60.0), RateBar(0.9e9), Bar(ONE_THREAD, 1.8))),
    Row(64, 128, 1 << 14, bars=(Bar("eager", 25.0), Bar("compiled", 6.0))),
    Row(256, 128, 1 << 14),
    Row(256, 128, 1 << 17, columns=ALL_COLUMNS,
        bars=(Bar("eager", 80.0), Bar("compiled", 12.0), RateBar(1.2e9), Bar(ONE_THREAD, 1.8))),
    # The smallest useful call: overhead is most of it.
    Row(64, 128, 1 << 10, bars=(Bar("tidy", 1.0),)),
    Row(64, 2048, 1 << 16, columns=(LIBRARY, "tidy"), bars=(Bar("tidy", 1.0),), dictionary="rademacher"),
    Row(64, 128, 1 << 16, columns=(LIBRARY, "tidy"), bars=(Bar("tidy", 1.5),), dictionary="rademacher"),
    # Time and memory against c. W alone would take 8.6 GB (f=128) at c = 2**24, so these rows hold the library only.
    Row(64, 128, 1 << 16),
    Row(64, 128, 1 << 18, columns=(LIBRARY,)),
    Row(64, 128, 1 << 20, columns=(LIBRARY,)),
    Row(64, 128, 1 << 22, columns=(LIBRARY,)),
    Row(64, 128, 1 << 24, columns=(LIBRARY,)),
    Row(64, 2048, 1 << 20, columns=(LIBRARY,)),
    Row(64, 128, 1 << 20, columns=(LIBRARY,), dictionary="rademacher"),
    # Minutes.
    Row(64, 128, 1 << 26, columns=(LIBRARY,), full_only=True),
)

MEMORY_BARS = (
    MemoryBar("hadamard-n64-f2048-c1048576", "hadamard-n64-f2048-c16384", 200.0),
    MemoryBar("hadamard-n64-f128-c1048576", None, 32.0),
    MemoryBar("hadamard-n64-f128-c16777216", None, 32.0),
)

LINEAR_BARS = (LinearBar(tuple(f"hadamard-n64-f128-c{1 << log2}" for log2 in range(14, 25, 2)), 0.10),)


def row_named(name: str) -> Row:
    """The row called `name`; a `ValueError` lists the names there are."""
    for row in ROWS:
        if row.name == name:
            return row
    raise ValueError(f"unknown row {name!r}; expected one of {', '.join(row.name for row in ROWS)}")
