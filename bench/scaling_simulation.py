"""Simulates collectives hop by hop over links with a bandwidth and a latency, ranks being ready at different times.

A rank sends its messages one after the other, a link carries one at a time, and a hop begins when its data is there.
The events of one hop of all ranks are an array; `ready` and the results are seconds by rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Links:
    """From each rank to the next one in the ring: seconds before the first byte arrives, and bytes per second."""

    latency: np.ndarray
    bandwidth: np.ndarray

    @classmethod
    def even(cls, world: int, latency: float, bandwidth: float) -> Links:
        return cls(np.full(world, latency), np.full(world, bandwidth))

    @classmethod
    def nodes(cls, world: int, per_node: int, inside: tuple[float, float], outside: tuple[float, float]) -> Links:
        """`(latency, bandwidth)` within a node and, from its last rank to the next node, outside."""
        crosses = (np.arange(world) + 1) % per_node == 0 if world > per_node else np.zeros(world, bool)
        return cls(np.where(crosses, outside[0], inside[0]), np.where(crosses, outside[1], inside[1]))


def ring(ready: np.ndarray, links: Links, hops: int, message: float) -> np.ndarray:
    """Every rank passes on, `hops` times, what it got last: when each rank has received and sent all of it."""
    have, free, takes = ready.copy(), ready.copy(), message / links.bandwidth
    for _ in range(hops):
        start = np.maximum(have, free)
        free = start + takes
        # A rank that is not ready yet takes nothing in.
        have = np.maximum(np.roll(free + links.latency, 1), ready)
    return np.maximum(have, free)


def all_gather(ready: np.ndarray, links: Links, size: float) -> np.ndarray:
    """`size` bytes of all ranks together."""
    world = len(ready)
    return ring(ready, links, world - 1, size / world)


def all_reduce(ready: np.ndarray, links: Links, size: float) -> np.ndarray:
    """A tensor of `size` bytes: partial sums round the ring, then the results."""
    world = len(ready)
    return ring(ready, links, 2 * (world - 1), size / world)


def all_to_all(ready: np.ndarray, per_node: int, inside: tuple[float, float], outside: tuple[float, float],
               size: float, overhead: float = 0.0) -> np.ndarray:  # fmt: skip
    """Each rank sends `size / world` to every other; inside and outside its node by different links.

    In the order of NCCL: one node after the other, and there first to the rank in the same place, so that in each
    round everyone sends to somebody else. Each way out of a rank, and each way in, carries one message at a time;
    `overhead` is what starting one costs.
    """
    world = len(ready)
    per_node = min(per_node, world)
    if world % per_node:
        raise ValueError(f"{world} ranks on nodes of {per_node}; expected full nodes")
    rank, message = np.arange(world), size / world
    starting, done = ready.copy(), ready.copy()
    way_out, way_in = np.tile(ready, (2, 1)), np.tile(ready, (2, 1))
    for distance in range(1, world):
        nodes_on, places_on = divmod(distance, per_node)
        receiver = (rank // per_node + nodes_on) * per_node % world + (rank + places_on) % per_node
        far = (rank // per_node != receiver // per_node).astype(int)
        latency, takes = np.where(far, outside[0], inside[0]), message / np.where(far, outside[1], inside[1])
        starting = starting + overhead
        left = np.maximum(way_out[far, rank], starting) + takes
        way_out[far, rank] = left
        arrived = np.maximum(way_in[far, receiver] + takes, left + latency)
        way_in[far, receiver] = arrived
        done[receiver] = np.maximum(done[receiver], arrived)
        done = np.maximum(done, left)
    return done


def jittered(seconds: float, world: int, jitter: float, generator: np.random.Generator) -> np.ndarray:
    """`seconds` on each rank, lengthened by the size of a normal number with standard deviation `jitter` times them."""
    return seconds * (1 + jitter * np.abs(generator.standard_normal(world)))
