"""Seconds that NCCL's collectives take on nodes of eight H200: latencies and bandwidths as published, no measurement.

Form and constants are those by which NCCL chooses its algorithm (src/graph/tuning.cc and topo.h of NVIDIA/nccl, tables
for Hopper): a start, a latency per step inside a node and per step between nodes, and bytes over a bandwidth, for three
protocols of which the fastest is taken. NVLink 4 carries 450 GB/s each way per GPU (H200 data sheet), of which NCCL
counts on 18 links of 20.6; a ConnectX-7 card at 400 Gbit/s carries 50 GB/s, of which 46 to 48 are seen
(nccl-tests, issue 290). Rings of a node go through its eight cards side by side; an all-to-all does not, each GPU then
has its own card alone (nccl-tests, issue 267).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bench import scaling_simulation as simulation


@dataclass(frozen=True)
class Protocol:
    """One of NCCL's ways to move data: start and latencies in seconds, and the share of the bandwidth it reaches."""

    name: str
    start_ring: float
    start_tree: float
    inside_ring: float
    inside_tree: float
    outside_ring: float
    outside_tree: float
    share: float
    most: float  # bytes per second at most, over several nodes


US = 1e-6
PROTOCOLS = (
    Protocol("LL", 6.6 * US, 6.8 * US, 0.6 * US, 0.6 * US, 2.7 * US, 5.0 * US, 0.25, 19e9),
    Protocol("LL128", 14.0 * US, 14.0 * US, 1.9 * US, 1.25 * US, 4.0 * US, 8.5 * US, 0.92, math.inf),
    Protocol("Simple", 8.4 * US, 8.4 * US, 3.4 * US, 4.0 * US, 14.0 * US, 14.0 * US, 1.0, math.inf),
)


@dataclass(frozen=True)
class Cluster:
    """Nodes of GPUs. `nvlink` and `card`: bytes per second each way, as reached, per GPU and per network card."""

    per_node: int = 8
    nvlink: float = 18 * 20.6e9
    card: float = 47e9
    cards_per_node: int = 8
    # Starting a message to a network card (getNetOverhead in tuning.cc, Intel's processors).
    message: float = 1.0 * US
    # A message over TCP, two deliveries and the wakening of two threads; and the work on each further one that a rank
    # sends and receives meanwhile: assumed, see the measured links.
    tcp_hop: float = 50 * US
    tcp_message: float = 5 * US

    def nodes(self, world: int) -> int:
        return -(-world // self.per_node)

    def ring_bandwidth(self, world: int) -> float:
        """Bytes per second that go round all rings together."""
        return self.nvlink if world <= self.per_node else min(self.nvlink, self.cards_per_node * self.card)

    def _latencies(self, world: int, p: Protocol) -> tuple[float, float]:
        if world <= self.per_node:
            return p.inside_ring, 0.0
        # In a ring over nodes every step costs the start of a message to the card.
        return max(p.inside_ring, self.message * (3 if p.name == "Simple" else 1)), p.outside_ring

    def all_gather(self, world: int, size: float) -> tuple[float, Protocol]:
        """Seconds for `size` bytes of all ranks together, and the protocol."""
        return self._ring(world, size * (world - 1) / world, 1) if world > 1 else (0.0, PROTOCOLS[0])

    def reduce_scatter(self, world: int, size: float) -> float:
        """As an all-gather: NCCL's rings run the other way round."""
        return self.all_gather(world, size)[0]

    def _ring(self, world: int, traffic: float, times: int) -> tuple[float, Protocol]:
        outside_steps, found = times * (self.nodes(world) - 1), []
        for p in PROTOCOLS:
            inside, outside = self._latencies(world, p)
            steps = times * (world - 1)
            latency = p.start_ring + (steps - outside_steps) * inside + outside_steps * outside
            found.append((latency + traffic / self._bandwidth(world, p), p))
        return min(found, key=lambda pair: pair[0])

    def _bandwidth(self, world: int, p: Protocol) -> float:
        reached = p.share * self.ring_bandwidth(world)
        return min(reached, p.most) if world > self.per_node else reached

    def all_reduce(self, world: int, size: float) -> float:
        """Seconds; by rings, or by a tree over the nodes with a chain in each."""
        if world == 1:
            return 0.0
        nodes = self.nodes(world)
        ranks = min(world, self.per_node)
        tree = min(
            p.start_tree + 2 * ((ranks - 1) * p.inside_tree + math.log2(nodes) * p.outside_tree)
            + 2 * size / (0.92 * self._bandwidth(world, p))
            for p in PROTOCOLS
        )  # fmt: skip
        return min(tree, self._ring(world, 2 * size * (world - 1) / world, 2)[0])

    def all_to_all(self, world: int, size: float) -> float:
        """Seconds for an exchange in which each rank has `size` bytes, a part for each rank."""
        if world == 1:
            return 0.0
        inside = (min(world, self.per_node) - 1) / world * size / self.nvlink
        outside = (world - self.per_node) / world * size / self.card if world > self.per_node else 0.0
        p = PROTOCOLS[2]
        latency = p.outside_ring if outside else p.inside_ring
        return p.start_ring + latency + max(inside, outside, (world - 1) * self.message)

    def gloo_exchange(self, world: int) -> float:
        """Seconds of the few integers that all ranks compare, on CPU tensors: everyone to everyone over TCP."""
        return self.tcp_hop + (world - 1) * self.tcp_message

    # ---- the same, simulated, with ranks that are ready at different times ----

    def simulate_all_gather(self, ready: np.ndarray, size: float) -> np.ndarray:
        world = len(ready)
        p = self.all_gather(world, size)[1]
        inside, outside = self._latencies(world, p)
        rings = self.cards_per_node
        bandwidth = self._bandwidth(world, p) / rings
        links = simulation.Links.nodes(world, self.per_node, (inside, bandwidth), (outside, bandwidth))
        return simulation.all_gather(ready, links, size / rings) + p.start_ring

    def simulate_all_reduce(self, ready: np.ndarray, size: float) -> np.ndarray:
        """By the tree: nobody has the result before all have given their part."""
        return np.full_like(ready, ready.max() + self.all_reduce(len(ready), size))

    def simulate_all_to_all(self, ready: np.ndarray, size: float) -> np.ndarray:
        p = PROTOCOLS[2]
        links = (p.inside_ring, self.nvlink), (p.outside_ring, self.card)
        return simulation.all_to_all(ready, self.per_node, *links, size, self.message) + p.start_ring

    def simulate_gloo_exchange(self, ready: np.ndarray) -> np.ndarray:
        """Each rank sends one message after the other, beginning with the next rank, and needs those of all."""
        world = len(ready)
        sent = ready[:, None] + np.arange(world) * self.tcp_message
        arrives = np.array([sent[(rank - np.arange(world)) % world, np.arange(world)] for rank in range(world)])
        return np.maximum(ready, (arrives + self.tcp_hop).max(1))
