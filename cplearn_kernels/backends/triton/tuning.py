"""Which tile sizes and how many warps each Triton kernel runs with: a table per architecture, and a rule for the rest.

The table is data (tuning.json): architecture -> kernel -> form -> {"rows": BM, "codes": BN, "warps",
"stages"}; "how" says which entries were measured, counted, or taken from elsewhere; for "largest_block" and "verified"
see below.
`python -m bench.gpu.tune` measures candidates on a GPU and writes it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

TABLE = Path(__file__).with_suffix(".json")
KERNELS = (
    "best_codes",
    "column_sums",
    "row_sums",
    "weighted_codes",
    "weighted_codes_one",
    "weighted_codes_given",
    "chunk_weights",
    "weighted_chunk",
    "probabilities",
)


@dataclasses.dataclass(frozen=True)
class Configuration:
    """How one kernel is launched.

    Attributes:
        rows: BM, rows of a tile (of each view where a kernel takes both).
        codes: BN, codes of a tile; the block size for Kronecker forms.
        warps, stages: Triton's num_warps and num_stages.
    """

    rows: int
    codes: int
    warps: int
    stages: int = 2


@functools.lru_cache(maxsize=1)
def table() -> dict[str, Any]:
    """The configurations in the package, as read from JSON."""
    entries: dict[str, Any] = json.loads(TABLE.read_text())
    return entries


def verified() -> tuple[str, ...]:
    """The architectures on which the tests of the kernels have run and passed (docs/gpu-status.md)."""
    return tuple(table()["verified"])


def largest_block(arch: str) -> int:
    """The largest Hadamard block whose transform fits an architecture's registers for both views without a spill."""
    return int(table()["largest_block"].get(arch, 2048))


def architecture(device: torch.device) -> str:
    """The name under which a device's configurations are kept: "sm_90", "gfx942", "interpreter"."""
    if device.type != "cuda":
        return "interpreter"
    if torch.version.hip:
        return str(torch.cuda.get_device_properties(device).gcnArchName).split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


_overrides: dict[tuple[str, str], Configuration] = {}


@contextlib.contextmanager
def override(kernel: str, form: str, config: Configuration) -> Iterator[None]:
    """Run a kernel with another configuration than the table's: for the autotuner and for tests."""
    _overrides[kernel, form] = config
    try:
        yield
    finally:
        del _overrides[kernel, form]


def choose(arch: str, kernel: str, form: str, n: int) -> Configuration:
    """The configuration of a kernel: the table's, or the rule's, with no more rows than the batch can fill."""
    if (kernel, form) in _overrides:
        return _at_most(_overrides[kernel, form], form, n)
    entry = table()["architectures"].get(arch, {}).get(kernel, {}).get(form)
    found = Configuration(**entry) if entry else rule(arch, kernel, form)
    return _at_most(found, form, n)


def rule(arch: str, kernel: str, form: str) -> Configuration:
    """A configuration for what no table has: about 32 logits of a tile per lane of 32, which fits 255 registers.

    The interpreter takes as much as it can at once, because each program costs it milliseconds.
    """
    views = 2 if kernel in ("row_sums", "weighted_codes", "chunk_weights") else 1
    lanes = 2 if arch.startswith("gfx") else 1
    if form.startswith("kronecker"):
        block = int(form.split("-")[1])
        elements = 32768 if arch == "interpreter" else 4096 if block < 2048 else 8192
        warps = 4 if elements == 4096 else 8
        rows = max(1, elements // views // block // (2 if kernel == "weighted_codes_given" else 1))
        return Configuration(rows, block, warps // lanes)
    if arch == "interpreter":
        return Configuration(128, 128, 4)
    # Addresses of given weights take registers too.
    rows = 16 if kernel == "weighted_codes_given" else 32
    return Configuration(rows, 128 if kernel in ("chunk_weights", "weighted_chunk") else 64, 4 // lanes)


def _at_most(found: Configuration, form: str, n: int) -> Configuration:
    """Fewer rows for a small batch, but not fewer than a product needs (16)."""
    needed = 1 << max(n - 1, 0).bit_length()
    smallest = 1 if form.startswith("kronecker") else 16
    return dataclasses.replace(found, rows=min(found.rows, max(smallest, needed)))
