"""The time of a sharded step: on H200 as far as models reach, and on this machine's ranks behind slow links.

On GPUs the work on a rank's codes is what `bench.cuda_times` predicts of the cuda backend for a call with N rows and
this rank's codes, or a given rate: **predicted, never measured**. Between the collectives PyTorch starts about
`SMALL_OPERATIONS` small kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench import scaling_formulas as formulas
from bench.cuda_plan import plan
from bench.cuda_times import NODE, steps
from bench.gpu_rates import GPUS
from bench.scaling_cluster import Cluster
from bench.scaling_formulas import Shape
from bench.scaling_simulation import jittered

H200 = next(gpu for gpu in GPUS if gpu.name == "H200")
# A range of codes has at most this many; more need more ranks.
MOST_CODES = 1 << 30
SMALL_OPERATIONS, SECONDS_EACH = 40, 5e-6
# Orders, copies and sums of the gradients between backend and network, in readings and writings of all of them.
_PASSES_OVER_GRADIENTS = 5
_MEMORY_SHARE = 0.7
# Of a call's time given as a rate; about what the model finds at f = 128 and f = 2048.
PASS_1_SHARE = 0.2
SIMULATED_JITTER = 0.05


@dataclass(frozen=True)
class Work:
    """Seconds of one rank's work: pass 1 over both views, and everything else."""

    pass_1: float
    rest: float

    @property
    def all(self) -> float:
        return self.pass_1 + self.rest


@dataclass(frozen=True)
class Times:
    """A step: seconds of its parts, and in all; `waits` is what of `rows` pass 1 does not hide."""

    agreement: float
    rows: float
    waits: float
    pass_1: float
    reductions: float
    rest: float
    gradients: float
    small: float

    @property
    def all(self) -> float:
        return self.agreement + self.waits + self.pass_1 + self.reductions + self.rest + self.gradients + self.small

    @property
    def work(self) -> float:
        return self.pass_1 + self.rest

    @property
    def share_of_work(self) -> float:
        """Of the step: work on codes, the part that more GPUs divide."""
        return self.work / self.all


def work_on_gpu(shape: Shape, rate: float | None = None) -> Work:
    """What the cuda backend needs for a rank's codes; `rate`: logits per second instead of the kernel model."""
    if rate is not None:
        seconds = shape.logits_per_rank / rate
        return Work(PASS_1_SHARE * seconds, (1 - PASS_1_SHARE) * seconds)
    found = steps(H200, plan(H200, "hadamard", shape.N, shape.f, shape.codes_per_rank))
    first = {step.kernel: step.predicted + step.launches * NODE[1] for step in found}
    pass_1 = sum(first.get(kernel, 0.0) for kernel in ("prepare_rows", "best_codes", "merge_best"))
    return Work(pass_1, sum(first.values()) - pass_1)


def small_operations(shape: Shape) -> float:
    """Seconds of what PyTorch does between the collectives."""
    moved = _PASSES_OVER_GRADIENTS * formulas.sizes(shape)["gradients"]
    return SMALL_OPERATIONS * SECONDS_EACH + moved / (_MEMORY_SHARE * H200.memory)


def fits(shape: Shape) -> bool:
    """Whether the ranks can hold that many codes."""
    return shape.codes_per_rank <= MOST_CODES


def predict(shape: Shape, cluster: Cluster | None = None, rate: float | None = None, agree_by: str = "gloo",
            gradients_by: str = "all-to-all") -> Times:  # fmt: skip
    """A step on `shape.world` H200 by closed formulas.

    `agree_by` "gloo" (on CPU tensors) or "nccl"; `gradients_by` "all-to-all", as the library does, or "reduce-scatter".
    """
    cluster = cluster or Cluster()
    work, sizes, world = work_on_gpu(shape, rate), formulas.sizes(shape), shape.world
    one_view = cluster.all_gather(world, sizes["rows"] / 2)[0]
    hidden = min(one_view, work.pass_1 / 2)
    if agree_by == "gloo":
        agreement = cluster.gloo_exchange(world)
    else:
        agreement = cluster.all_gather(world, sizes["agreement"])[0]
    back = cluster.all_to_all if gradients_by == "all-to-all" else cluster.reduce_scatter
    return Times(
        agreement=agreement, rows=2 * one_view, waits=2 * one_view - hidden, pass_1=work.pass_1,
        reductions=sum(cluster.all_reduce(world, sizes[term]) for term in ("best logits", "sums", "scalars")),
        rest=work.rest, gradients=back(world, sizes["gradients"]),
        small=small_operations(shape) if world > 1 else 0.0,
    )  # fmt: skip


def simulate(shape: Shape, jitter: float = SIMULATED_JITTER, cluster: Cluster | None = None, rate: float | None = None,
             seed: int = 0) -> float:  # fmt: skip
    """Seconds of a step hop by hop, each rank's work longer by up to a few `jitter`; ranks start it together."""
    cluster, generator = cluster or Cluster(), np.random.default_rng(seed)
    work, sizes, world = work_on_gpu(shape, rate), formulas.sizes(shape), shape.world

    def after(ready: np.ndarray, seconds: float) -> np.ndarray:
        return ready + jittered(seconds, world, jitter, generator)

    ready = cluster.simulate_gloo_exchange(np.zeros(world))
    first = cluster.simulate_all_gather(ready, sizes["rows"] / 2)
    second = cluster.simulate_all_gather(first, sizes["rows"] / 2)
    ready = after(np.maximum(after(first, work.pass_1 / 2), second), work.pass_1 / 2)
    for term in ("best logits", "sums"):
        ready = cluster.simulate_all_reduce(ready, sizes[term])
    ready = cluster.simulate_all_reduce(after(ready, work.rest), sizes["scalars"])
    return float((cluster.simulate_all_to_all(ready, sizes["gradients"]) + small_operations(shape)).max())


def smallest_codes(N: int, f: int, world: int, **options) -> int | None:
    """The crossover: the least power of two of codes from which work takes half of the step; None up to 2^34."""
    for log2 in range(10, 35):
        shape = formulas.hadamard(N, f, 1 << log2, world)
        if fits(shape) and predict(shape, **options).share_of_work >= 0.5:
            return 1 << log2
    return None


def behind_links(shape: Shape, unlimited: float, rate: float | None, delay: float, pass_1: float) -> float:
    """Seconds of a step over gloo where each rank sends at most `rate` bits per second, `delay` seconds on the way.

    `unlimited`: the same ranks' step without limits, measured; `pass_1` its pass 1 over one view. Both gathers share
    the link hop by hop, so that only the last hop of the second is left to hide behind pass 1.
    """
    seconds = unlimited + delay * sum(formulas.gloo_delays(shape).values())
    if rate:
        last_hop = 8 * formulas.sent(shape)["rows"] / 2 / max(1, shape.world - 1) / rate
        seconds += 8 * formulas.sent_by_gloo(shape) / rate - min(last_hop, pass_1)
    return seconds
