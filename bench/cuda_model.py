"""The model behind the predictions for the cuda backend: clocks of a multiprocessor per logit, and what hides what.

Counted: thread instructions of each kernel by unit, from the machine code (bench/results/cuda_resources.json). A unit's
clocks per logit are its instructions, or bytes, over its rate. The *bound* of a pass is its busiest unit.

The *prediction* treats a scheduler with its resident warps as a closed queueing network (mean value analysis): in each
round of the main loop a warp visits three stations, the arithmetic (the busiest of issue, fp32, integer, special
function and tensor cores), the path to shared memory and first-level cache (loads, stores, shuffles: one queue, as
Nsight Compute's guide describes the LSU pipe), and the second-level cache; and it waits for latencies that nothing in
the same warp hides. With few warps that costs; with many the busiest station is all that counts. Nothing here was
measured.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path

from bench.cuda_kernels import FLUSH_BLOCKS, block_name
from bench.cuda_plan import Cut, Plan
from bench.gpu_rates import LIMITS, Gpu

RESOURCES = Path(__file__).resolve().parent / "results" / "cuda_resources.json"

# Clocks, assumed (Luo et al., arXiv 2402.13499, give about 30 for shared memory, 40 for the first-level and 260 to
# 270 for the second-level cache of an H100).
SHARED_LATENCY, BARRIER_LATENCY, SHUFFLE_LATENCY, L1_LATENCY, L2_LATENCY = 30, 30, 25, 40, 270
# A reduction to memory takes the load-store path a clock per sector of 32 bytes (assumed).
SECTOR_DOUBLES = 4
# Weights of independent codes go to memory as pairs of half floats that lie 16 bytes apart (half_order.cuh): a warp's
# store touches 16 sectors where 4 would hold it, and these are what the load-store path and the second level carry.
WEIGHT_BYTES, SECTORS_TOUCHED = 8.0, 4
# Forward and backward transforms of a round, and exchanges with the partner.
TRANSFORMS = {"best_codes": 1, "column_sums": 1, "weighted_codes reverse_kl": 3}
STATIONS = ("arithmetic", "shared", "l2")


@dataclass(frozen=True)
class Cost:
    """A pass on one multiprocessor, per logit: clocks on each unit; and what its warps do.

    Attributes:
        units: unit -> clocks of a multiprocessor per logit.
        instructions: thread instructions per logit.
        warps: resident on a multiprocessor.
        latency: clocks that a warp waits in a round.
        numbers: logits of a thread in a round.
        blocks: of threads, resident on a multiprocessor.
        threads: of a block.
    """

    units: dict[str, float]
    instructions: float
    warps: int
    latency: float
    numbers: int
    blocks: int
    threads: int

    @property
    def bound(self) -> float:
        """Clocks per logit of the busiest unit."""
        return max(self.units.values())

    @property
    def busiest(self) -> str:
        return max(self.units, key=self.units.__getitem__)

    def predicted(self, warps: float | None = None) -> float:
        """Clocks per logit with so many warps on the multiprocessor, by default all that fit."""
        warps = self.warps if warps is None else min(warps, self.warps)
        arithmetic = max(value for unit, value in self.units.items() if unit not in ("shared", "l2"))
        round_of_warp = 32 * self.numbers  # logits
        # A scheduler has a quarter of the warps and of every rate.
        demands = [4 * round_of_warp * value for value in (arithmetic, self.units["shared"], self.units.get("l2", 0.0))]
        # With fewer warps than schedulers some of these idle.
        rounds = throughput(demands, self.latency, max(1.0, warps / 4)) * min(1.0, warps / 4)
        return 1 / (4 * rounds * round_of_warp)


def throughput(demands: list[float], latency: float, customers: float) -> float:
    """Rounds per clock of a closed network of queues with a delay; between whole numbers of customers, interpolated."""
    queues, rate, before, number = [0.0] * len(demands), 0.0, 0.0, 0
    while number < customers:
        number += 1
        waits = [demand * (1 + queue) for demand, queue in zip(demands, queues)]
        before, rate = rate, number / (sum(waits) + latency)
        queues = [rate * wait for wait in waits]
    return rate - (number - customers) * (rate - before)


def new_best_share(size: int, rows: int = 1) -> float:
    """Share of a warp's rounds in which one of its rows finds a new best, over a split of `size` blocks.

    The lanes of a row share their best, and codes come in no order: in its k-th round a row has a new one with
    probability 1/k.
    """
    return sum(1 - (1 - 1 / k) ** rows for k in range(1, size + 1)) / size


@functools.lru_cache(maxsize=1)
def kernels() -> dict[tuple[str, str, str], dict]:
    """(arch, tile, kernel) -> record of `bench.cuda_resources`, {} where there is no report."""
    if not RESOURCES.exists():
        return {}
    return {(r["arch"], r["unit"], r["kernel"]): r for r in json.loads(RESOURCES.read_text())["kernels"]}


def _clocks(gpu: Gpu, mix: dict[str, float], reduction_clocks: float) -> dict[str, float]:
    get = mix.get
    imad = get("imad", 0)
    units = {
        "issue": get("all", 0) / gpu.issue,
        "fp32": max((get("fp32", 0) + imad) / gpu.fp32, imad / gpu.integer),
        "integer": get("integer", 0) / gpu.integer,
        "special": get("special", 0) / gpu.exponentials + get("conversion", 0) / gpu.conversions,
        "shared": (get("shared_bytes", 0) + get("global_bytes", 0)) / gpu.shared + get("shuffle", 0) / gpu.shuffles
        + get("reduction", 0) * reduction_clocks,
    }  # fmt: skip
    if get("tensor"):
        units["tensor"] = get("tensor", 0) * 2048 / 32 / gpu.mma  # m16n8k16: 2048 multiply-adds of a warp
    return units


def pass_cost(gpu: Gpu, kernel: str, plan: Plan, cut: Cut | None = None) -> Cost:
    """A pass over tiles; `cut`: how its blocks of codes are split, None for the column sums."""
    record = kernels()[gpu.architecture, block_name(plan.log2_block), kernel]
    weights = {"common": 1.0}
    if cut is not None:
        # The last block of a split flushes too.
        weights["flush"] = min(1.0, (cut.size // FLUSH_BLOCKS + 1) / cut.size)
        weights["new_best"] = new_best_share(min(cut.size, 1 << 16), max(1, 32 // plan.team))
        weights["best_code"] = min(1.0, 1024 / plan.c)
    mix: dict[str, float] = {}
    for part, counts in record["loop"].items():
        for unit, count in counts.items():
            mix[unit] = mix.get(unit, 0.0) + weights.get(part, 0.0) * count / record["numbers"]
    in_rows = plan.team > 4  # neighbouring threads add to neighbouring doubles
    units = _clocks(gpu, mix, 1 / SECTOR_DOUBLES if in_rows else 1.0)
    if plan.log2_block == 0 and kernel.startswith("weighted_codes"):
        units["shared"] += (SECTORS_TOUCHED - 1) * WEIGHT_BYTES / gpu.shared
    units["l2"] = l2_bytes(gpu, kernel, plan, record, weights.get("flush", 0.0)) / gpu.l2
    return Cost(units, mix["all"], record["warps"], round_latency(kernel, plan), record["numbers"], record["blocks"],
                record["threads"])  # fmt: skip


def rows_fit(gpu: Gpu, plan: Plan, record: dict) -> bool:
    """Whether the prepared rows of all resident blocks stay in what shared memory leaves of the first-level cache."""
    rows = record["blocks"] * (record["threads"] // plan.team) * plan.width * 4
    limits = LIMITS[gpu.architecture]
    return rows <= limits.cache - record["blocks"] * (record["dynamic_shared"] + record["static_shared"] + 1024)


def l2_bytes(gpu: Gpu, kernel: str, plan: Plan, record: dict, flush_share: float) -> float:
    """Bytes per logit that pass between the second-level cache and a multiprocessor."""
    teams = record["threads"] // plan.team
    if plan.log2_block == 0:
        if not kernel.startswith("weighted_codes"):
            return 4.0
        # Products in, those of the partner's row once more, g; weights out as two halves, twice.
        return 4.0 + 4.0 + 4 / teams + SECTORS_TOUCHED * WEIGHT_BYTES
    signs = 4 / 32
    if kernel == "column_sums":
        return signs + 4 / teams  # teams of a block of threads take the same row at the same time
    own = signs + (0.0 if rows_fit(gpu, plan, record) else 4.0)
    if kernel.startswith("weighted_codes"):
        # g, which teams of a block of threads share if they have the same view; doubles of a flush.
        own += 4 / max(1, teams // 2) + flush_share * 2 * 8
    return own


def round_latency(kernel: str, plan: Plan) -> float:
    """Clocks that a warp waits in a round of the main loop, assuming that loads are not made ahead."""
    loads = L2_LATENCY * (2 if kernel.startswith("weighted_codes") else 1)
    if plan.log2_block == 0:
        return loads
    levels = min(plan.log2_block - 5, 5) if plan.team <= 4 else max(plan.log2_block - 10, 0)
    exchange = 2 * SHARED_LATENCY + BARRIER_LATENCY if plan.team > 4 else 0
    partner = (
        2 * SHARED_LATENCY + BARRIER_LATENCY if kernel.startswith("weighted_codes") and plan.log2_block < 13 else 0
    )
    return loads + TRANSFORMS[kernel] * (exchange + levels * SHUFFLE_LATENCY) + partner


def product_cost(gpu: Gpu, kernel: str) -> Cost:
    """A product with codes on the tensor cores, per row, column and 128 terms."""
    record = kernels()[gpu.architecture, "sign_product", kernel]
    mix = {unit: count / record["numbers"] for unit, count in record["loop"]["common"].items()}
    units = _clocks(gpu, mix, 1.0)
    # A block of threads makes 64 by 128: its rows as two halves and its columns' bits, if the first level shares them.
    units["l2"] = (64 * 128 * 4 + 128 * 128 / 8) / (64 * 128) / gpu.l2
    return Cost(
        units, mix["all"], record["warps"], 4 * L2_LATENCY, record["numbers"], record["blocks"], record["threads"]
    )
