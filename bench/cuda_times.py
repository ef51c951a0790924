"""Bound and prediction of a call of cplearn_loss with gradients on the cuda backend, kernel by kernel.

Passes follow bench/cuda_model.py. The small kernels between them are counted by their longest chain of dependent
steps and by the bytes they move, from the second-level cache where a call's working memory fits it. Like the
latencies of the model these are assumptions: FLIGHT loads of a thread at a time, MEMORY clocks for one from memory,
ARITHMETIC clocks for what finish_columns does with an element (two divisions and a logarithm in double precision, one
after the other).
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.cuda_model import L2_LATENCY, Cost, pass_cost, product_cost
from bench.cuda_plan import PRIOR_PARTS, Plan
from bench.gpu_rates import Gpu

FLIGHT, MEMORY, ARITHMETIC = 4, 600, 700
# Seconds between the nodes of a CUDA graph that follow each other: 1.5 to 2.5 µs, assumed.
NODE = (1.5e-6, 2.0e-6, 2.5e-6)
SHARE = 0.7  # of a memory's rate that small kernels reach, assumed


@dataclass(frozen=True)
class Step:
    """A kernel over a whole call: how often it runs, seconds at the bound and predicted, both without launches."""

    kernel: str
    launches: int
    bound: float
    predicted: float


def _pass(gpu: Gpu, cost: Cost, logits: float, grid: int, of_block: float) -> tuple[float, float]:
    """(bound, predicted) seconds of one launch of `grid` blocks of threads, the largest with `of_block` logits.

    Blocks come in waves that fill the multiprocessors; in the last one these hold fewer blocks, and fewer warps.
    """
    waves, rest = divmod(grid, gpu.processors * cost.blocks)
    last = -(-rest // gpu.processors)  # blocks of the multiprocessors that have most
    clocks = waves * cost.blocks * cost.predicted()
    clocks += last * cost.predicted(last * cost.threads / 32) if last else 0.0
    return cost.bound * logits / gpu.clocks, of_block * clocks / gpu.clock


def steps(gpu: Gpu, plan: Plan) -> list[Step]:
    """Every kernel of the call in the order of its first launch."""
    counts = dict(plan.launches())
    logits = plan.total * min(plan.columns, plan.c)  # of a span
    timed = {kernel: (0.0, 0.0) for kernel in counts}

    best, columns, weighted = (pass_cost(gpu, "best_codes", plan, plan.best), pass_cost(gpu, "column_sums", plan),
                               pass_cost(gpu, "weighted_codes reverse_kl", plan, plan.sums))  # fmt: skip
    # Rows, or blocks of codes in the column sums, that each team of a block of threads takes one of; parts of the launch;
    # logits of a team.
    blocks, rows_of_split = plan.columns // plan.block, -(-plan.n // plan.column_splits)
    for kernel, cost, items, parts, of_team in (
        ("best_codes", best, plan.total, plan.best.parts, plan.best.size * plan.block),
        ("column_sums", columns, blocks, 2 * plan.column_splits, rows_of_split * plan.block),
        ("weighted_codes", weighted, plan.total, plan.sums.parts, plan.sums.size * plan.block),
    ):
        teams = cost.threads // plan.team
        timed[kernel] = _pass(gpu, cost, logits, -(-items // teams) * parts, teams * of_team)
    if plan.products:
        # Blocks of 64 rows by 128 columns; logits here are products of 128 terms.
        tiles, groups = -(-plan.f // 128), plan.columns // 128
        of_split = -(-groups // plan.product_splits)
        timed["sign_product"] = _pass(gpu, product_cost(gpu, "sign_product"), plan.total * plan.columns * tiles,
                                      -(-plan.total // 64) * groups, 64 * 128 * tiles)  # fmt: skip
        timed["add_sign_product"] = _pass(gpu, product_cost(gpu, "sign_product add"), 2 * plan.total * 128 * tiles * groups,
                                          -(-2 * plan.sum_rows // 64) * tiles * plan.product_splits, 64 * 128 * of_split)  # fmt: skip
    fits = plan.bytes <= gpu.l2_bytes
    rate, latency = (gpu.l2 * gpu.clocks, L2_LATENCY) if fits else (gpu.memory, MEMORY)
    for kernel, (bytes_moved, chain) in small_kernels(plan, latency).items():
        if kernel in counts:
            timed[kernel] = (bytes_moved / rate, max(bytes_moved / (SHARE * rate), chain / gpu.clock))
    return [Step(kernel, count, count * timed[kernel][0], count * timed[kernel][1]) for kernel, count in counts.items()]


def small_kernels(plan: Plan, latency: float) -> dict[str, tuple[float, float]]:
    """Kernel -> (bytes moved, clocks of its longest chain of dependent steps) of one launch; `latency` of a load."""
    parts = max(plan.team // 32, 1)
    best_parts, sum_parts = plan.best.parts * parts, plan.sums.parts * parts
    splits = plan.sums.parts if plan.log2_block else plan.product_splits
    sum_width = plan.width if plan.log2_block else plan.f
    # At most PRIOR_PARTS warps take the elements of the column sums in turns.
    of_thread = -(-2 * plan.columns // min(32 * PRIOR_PARTS, -(-2 * plan.columns // 128) * 128))
    return {
        "prepare_rows": (plan.total * (plan.f + plan.width) * 4, (2 * plan.width // 128 / FLIGHT + 1) * MEMORY),
        "prepare_halves": (plan.total * (plan.f + plan.width) * 4, (3 * plan.width // 32 / FLIGHT + 1) * MEMORY),
        "fill": (plan.zeros, latency),
        "block_signs": (plan.columns / 8, 3 * latency),
        "code_bits": (plan.columns * plan.width / 8, 2 * latency),
        "transposed_bits": (plan.columns * plan.width / 4, 2 * latency),
        "merge_best": (best_parts * plan.total * 16, (best_parts / FLIGHT + 1) * latency),
        "finish_columns": ((plan.column_splits + 1) * 2 * plan.columns * 4,
                           of_thread * (latency + ARITHMETIC + (plan.column_splits - 1) / FLIGHT * latency)),
        "finish_rows": (sum_parts * plan.total * 24, (sum_parts / FLIGHT + 1) * latency),
        "finish_sums": (2 * splits * plan.total * sum_width * 8,
                        2 * (splits / (FLIGHT / 2) + 1) * latency),
        "finish_loss": (plan.total * 8, ((plan.total + PRIOR_PARTS) / 1024 / FLIGHT + 2) * latency + 10 * 25),
        "copy": (4, latency),
        "scale_gradient": (plan.n * plan.f * 8, 2 * latency),
    }  # fmt: skip


def seconds(gpu: Gpu, plan: Plan) -> tuple[float, float]:
    """(bound, predicted) of the call; the bound without the gaps between kernels, the prediction with 2 µs a launch."""
    timed = steps(gpu, plan)
    launches = sum(step.launches for step in timed)
    return sum(step.bound for step in timed), sum(step.predicted for step in timed) + launches * NODE[1]
