"""Numbers as a reader wants them: three digits and a unit."""

from __future__ import annotations

# One megabyte, as in the targets: a million bytes, not 2**20.
MEGABYTE = 1_000_000


def duration(seconds: float) -> str:
    """Three digits and a unit: 7.12 ms, 1.05 s."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{_digits(seconds / size)} {unit}"
    return f"{_digits(seconds / 1e-6)} us"


def megabytes(count: float) -> str:
    """Bytes as megabytes, with one decimal below 10."""
    value = count / MEGABYTE
    return f"{value:.1f} MB" if value < 10 else f"{value:,.0f} MB"


def _digits(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"
