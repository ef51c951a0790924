"""Which kernels csrc/cuda has: their translation units, readable names for mangled ones, shared memory of a launch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).resolve().parent.parent / "csrc" / "cuda"
# Values of CPK_LOG2_BLOCK with which passes.cu is compiled; 0 stands for independent codes, whose products are stored.
BLOCKS = (6, 7, 8, 9, 10, 11, 12, 13, 0)
SMALL = ("rows_in", "rows_out", "codes_out", "signs", "sign_product")
PURPOSES = ("reverse_kl", "cross_entropy", "value", "row")  # weighted_codes.cuh, Purpose
RESULTS = ("loss_gradient", "expected_code", "gradient", "given_weights")  # rows.h, Result

NUMBERS = 32  # of a tile that a thread holds (hadamard_tile.cuh, kElements)
PRODUCT_NUMBERS = 64  # of a product that a thread of sign_product.cu holds
FLUSH_BLOCKS = 32  # weighted_codes.cuh, kFlushBlocks


@dataclass(frozen=True)
class Unit:
    """A translation unit: passes.cu with one block size, or another file (`log2_block` None)."""

    source: str
    log2_block: int | None = None

    @property
    def name(self) -> str:
        """As the table shows it."""
        return self.source if self.log2_block is None else block_name(self.log2_block)

    @property
    def options(self) -> list[str]:
        """For the compiler."""
        return [] if self.log2_block is None else [f"-DCPK_LOG2_BLOCK={self.log2_block}"]


UNITS = tuple(Unit("passes", block) for block in BLOCKS) + tuple(Unit(source) for source in SMALL)


def block_name(log2_block: int) -> str:
    """The block size as text: "2048", or "stored" for independent codes."""
    return str(1 << log2_block) if log2_block else "stored"


def readable(mangled: str) -> str:
    """The kernel's name with its mode: `weighted_codes reverse_kl`, `column_sums logs`, `sign_product add`."""
    found = re.search(r"\d(best_codes|column_sums|probabilities|given_weights|weighted_codes|[a-z_]+_kernel)", mangled)
    if found is None:
        return mangled
    name = found.group(1).removesuffix("_kernel")
    if purpose := re.search(r"7PurposeE(\d)E", mangled):
        return f"{name} {PURPOSES[int(purpose.group(1))]}"
    if result := re.search(r"6ResultE(\d)E", mangled):
        return f"{name} {RESULTS[int(result.group(1))]}"
    if flag := re.search(r"Lb([01])E", mangled):
        return name + {"column_sums": " logs", "sign_product": " add"}.get(name, "") * int(flag.group(1))
    return name


def dynamic_shared(kernel: str, log2_block: int | None, threads: int) -> int:
    """Bytes of dynamic shared memory with which a pass is launched (kSharedBytes of `Teams` and `WeightedTeams`)."""
    if log2_block is None:
        return 0
    team = 1 << (log2_block - 5) if log2_block else 4
    weighted = kernel.startswith("weighted_codes")
    pairs = weighted and not kernel.endswith("row") and 0 < log2_block < 13
    exchanges = team > 4
    buffer = team * (NUMBERS + 4) + (team if exchanges and team < 32 else 0) if exchanges or pairs else 0
    # Two buffers of a team; two sums that its first thread keeps.
    return 4 * (threads // team) * (2 * buffer + 2 * weighted)


def rare_branches(kernel: str) -> tuple[str, ...]:
    """The rare branches of a kernel's main loop (`cuda_code.RARE`) that the report counts apart."""
    if kernel == "best_codes":
        return ("new_best",)
    if kernel == "given_weights":
        return ("flush",)
    if kernel.startswith("weighted_codes"):
        return ("flush",) if kernel.endswith("row") else ("flush", "best_code")
    return ()


def numbers_of_thread(kernel: str) -> int:
    """Logits that a thread makes in one round of the main loop; for sign_product each with 128 of its features."""
    return PRODUCT_NUMBERS if kernel.startswith("sign_product") else NUMBERS
