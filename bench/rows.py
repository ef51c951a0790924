"""What is measured: the rows of the benchmark, their columns, and the bars they have to reach.

To add a row, append a `Row` to `ROWS`; to add a bar, give the row a `Bar`. Everything else (timing, memory,
JSON, tables, plot) follows from the lists in this file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

LIBRARY = "library"
COLUMN_TITLES = {
    LIBRARY: "cplearn-kernels",
    "eager": "authors' formula, eager",
    "tidy": "tidy formula, eager",
    "compiled": "tidy formula, torch.compile",
}
ALL_COLUMNS = tuple(COLUMN_TITLES)

# One megabyte, as in the bars: a million bytes, not 2**20.
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Bar:
    """The library must be at least `at_least` times as fast as column `against`, forward + backward."""

    against: str
    at_least: float


@dataclass(frozen=True)
class MemoryBar:
    """The library's peak on `row` may exceed its peak on `baseline` by less than `below_megabytes`."""

    row: str
    baseline: str
    below_megabytes: float


@dataclass(frozen=True)
class Row:
    """One problem size and the columns measured on it.

    Attributes:
        n: rows per view.
        num_features: f, the length of an embedding.
        num_codes: c, the number of codes.
        columns: names from `COLUMN_TITLES`; the library always comes first.
        bars: speed bars, each against one of `columns`.
        dictionary: which dictionary holds the codes; only "hadamard" so far.
        full_only: measured only under `--benchmark-full`.
    """

    n: int
    num_features: int
    num_codes: int
    columns: tuple[str, ...] = ALL_COLUMNS
    bars: tuple[Bar, ...] = ()
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
        return replace(self, n=(self.n >> 3) + 3, num_codes=max(self.num_codes >> 6, 100) + 1)


ROWS = (
    Row(64, 2048, 1 << 14, bars=(Bar("eager", 25.0),)),
    Row(64, 128, 1 << 14, bars=(Bar("eager", 12.0),)),
    Row(256, 128, 1 << 14),
    Row(64, 128, 1 << 16),
    # Time and memory against c. W alone would take 0.5 GB (f=128) and 8.6 GB (f=2048) at c = 2**20, so the last rows
    # hold the library only.
    Row(64, 128, 1 << 15, columns=(LIBRARY,)),
    Row(64, 128, 1 << 17, columns=(LIBRARY,)),
    Row(64, 128, 1 << 18, columns=(LIBRARY,)),
    Row(64, 128, 1 << 19, columns=(LIBRARY,)),
    Row(64, 128, 1 << 20, columns=(LIBRARY,)),
    Row(64, 2048, 1 << 17, columns=(LIBRARY,)),
    Row(64, 2048, 1 << 20, columns=(LIBRARY,)),
    # Minutes each in the other columns.
    Row(64, 2048, 1 << 16, full_only=True),
    Row(256, 128, 1 << 17, full_only=True),
)

MEMORY_BARS = (MemoryBar("hadamard-n64-f2048-c1048576", "hadamard-n64-f2048-c16384", 200.0),)


def row_named(name: str) -> Row:
    """The row called `name`; a `ValueError` lists the names there are."""
    for row in ROWS:
        if row.name == name:
            return row
    raise ValueError(f"unknown row {name!r}; expected one of {', '.join(row.name for row in ROWS)}")
