"""Other ways to make the transforms, and ideas, on paper: what they change per logit, and the model's answer.

    python -m bench.cuda_alternatives

Each alternative is written as what it adds to and takes from the counted instructions of the three passes. Nothing of
it exists. Whole-loss clocks are those of the passes alone, without small kernels and launches.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace

from bench.cuda_model import L2_LATENCY, Cost, pass_cost
from bench.cuda_plan import Plan, plan
from bench.gpu_rates import GPUS, Gpu

PASSES = ("best_codes", "column_sums", "weighted_codes reverse_kl")
FORWARD = {"best_codes": 1, "column_sums": 1, "weighted_codes reverse_kl": 1}
BACKWARD = {"weighted_codes reverse_kl": 2}
BUILT = "built: butterflies, one exchange"
KRONECKER = 2 * (32 + 64)  # multiply-adds of two halves for H_32 x H_64


@dataclass(frozen=True)
class Change:
    """What a logit costs more in one transform.

    Attributes:
        all, fp32, integer: instructions, in all and of two units.
        shared: bytes through shared memory.
        shuffles: numbers exchanged between lanes.
        tensor, tensor_share: multiply-adds on the tensor cores, and the share of their rate that is reached.
    """

    all: float = 0
    fp32: float = 0
    integer: float = 0
    shared: float = 0
    shuffles: float = 0
    tensor: float = 0
    tensor_share: float = 1.0


# x = high + low: two packs for two numbers, an unpacking and a subtraction each.
SPLIT = Change(all=3, fp32=2, integer=1)


def changed(gpu: Gpu, cost: Cost, change: Change, times: float = 1.0) -> Cost:
    """A pass with `times` transforms changed."""
    units = dict(cost.units)
    for unit, extra in (("issue", change.all / gpu.issue), ("fp32", change.fp32 / gpu.fp32),
                        ("integer", change.integer / gpu.integer),
                        ("shared", change.shared / gpu.shared + change.shuffles / gpu.shuffles),
                        ("tensor", change.tensor / (gpu.tensor * change.tensor_share))):  # fmt: skip
        units[unit] = units.get(unit, 0.0) + times * extra
    return replace(cost, units=units, instructions=cost.instructions + times * change.all)


def built(gpu: Gpu, p: Plan) -> dict[str, Cost]:
    """The passes as they are."""
    return {kernel: pass_cost(gpu, kernel, p, {"best_codes": p.best, "column_sums": None}.get(kernel, p.sums))
            for kernel in PASSES}  # fmt: skip


def with_transforms(gpu: Gpu, p: Plan, forward: Change, backward: Change) -> dict[str, Cost]:
    """The passes with both kinds of transforms changed."""
    return {kernel: changed(gpu, changed(gpu, cost, forward, FORWARD[kernel]), backward, BACKWARD.get(kernel, 0))
            for kernel, cost in built(gpu, p).items()}  # fmt: skip


def kronecker(p: Plan, tensor_share: float, instructions: float) -> tuple[Change, Change]:
    """(forward, backward): all levels become two products; the rows come as halves, weights have to be split."""
    levels, lanes = p.log2_block, max(p.log2_block - 10, 0)
    gone = Change(all=-levels - lanes, fp32=-levels, shuffles=-lanes)

    def made(splits: int, scale: float) -> Change:
        return Change(gone.all + splits * SPLIT.all + scale + instructions, gone.fp32 + splits * SPLIT.fp32,
                      splits * SPLIT.integer + scale, 0, gone.shuffles, KRONECKER, tensor_share)  # fmt: skip

    return made(1, 0), made(2, 1.5)  # a scale for a block of weights: a maximum of absolute values


def alternatives(gpu: Gpu, f: int) -> dict[str, dict[str, Cost]]:
    """Name -> passes, at n = 256 and c = 2^20."""
    p = plan(gpu, "hadamard", 256, f, 1 << 20)
    now, mma = built(gpu, p), gpu.mma / gpu.tensor
    found = {BUILT: now}
    if f == 2048:
        # 192 multiply-adds of a logit are 3 thread instructions of mma.sync.
        found["Kronecker form, mma.sync"] = with_transforms(gpu, p, *kronecker(p, mma, 3))
    if f == 2048 and gpu.architecture == "sm_90":
        # wgmma is issued once for four warps and reads ±1 from shared memory, 2 bytes per logit and product.
        forward, backward = kronecker(p, 1.0, 0.25)
        found["Kronecker form, wgmma"] = with_transforms(
            gpu, p, replace(forward, shared=4), replace(backward, shared=4)
        )
    # Rows come as halves, signs flip two numbers at once; half an instruction of mma.sync for four additions.
    first_levels = Change(all=-3.5, fp32=-4, tensor=32, tensor_share=mma)
    found["first four forward levels by mma.sync"] = with_transforms(gpu, p, first_levels, Change())
    levels = p.log2_block - 5 if p.team <= 4 else max(p.log2_block - 10, 0)
    # A lane sends the half that the other one goes on with: half the shuffles, two selections per pair more.
    half = Change(all=0.5 * levels, integer=levels, shuffles=-0.5 * levels)
    found["shuffles of halves"] = with_transforms(gpu, p, half, half)
    found["loads made a block ahead"] = {
        kernel: replace(cost, latency=cost.latency - L2_LATENCY) for kernel, cost in now.items()
    }
    together = with_transforms(gpu, p, _sum(first_levels, half), half)
    found["the last three together"] = {
        kernel: replace(cost, latency=cost.latency - L2_LATENCY) for kernel, cost in together.items()
    }
    weighted = "weighted_codes reverse_kl"
    found["16 warps of weighted_codes instead of 12"] = {**now, weighted: replace(now[weighted], warps=16)}
    packed = Change(all=-0.5 * p.log2_block)
    found["two additions in one instruction (Blackwell alone)"] = with_transforms(gpu, p, packed, packed)
    return found


def _sum(a: Change, b: Change) -> Change:
    """Both changes; only the first uses the tensor cores."""
    return replace(a, all=a.all + b.all, integer=a.integer + b.integer, shuffles=a.shuffles + b.shuffles)


def table(gpu: Gpu, f: int) -> str:
    """Markdown: clocks per 1000 logits of a multiprocessor for the whole loss."""
    units = ("issue", "fp32", "integer", "shared", "tensor")
    lines = [
        f"| {gpu.name}, f = {f} | clocks·10³: " + " | ".join(units) + " | bound | predicted | gain |",
        "|---" * 9 + "|",
    ]
    first = None
    for name, passes in alternatives(gpu, f).items():
        clocks = [sum(cost.units.get(unit, 0.0) for cost in passes.values()) for unit in units]
        bound, predicted = (
            sum(cost.bound for cost in passes.values()),
            sum(cost.predicted() for cost in passes.values()),
        )
        first = first or predicted
        lines.append(f"| {name} | " + " | ".join(f"{1000 * value:.0f}" for value in (*clocks, bound, predicted))
                     + f" | {first / predicted:.2f}x |")  # fmt: skip
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.cuda_alternatives", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.parse_args(arguments)
    for gpu in (gpu for gpu in GPUS if gpu.mma):
        print(table(gpu, 2048), table(gpu, 128), sep="\n\n", end="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
