"""Rates and limits of the GPUs for which bounds are counted: what a multiprocessor does per clock, what fits on it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """Rates of one GPU; `clock` in Hz, everything else per clock and multiprocessor.

    Sources: NVIDIA H200 and A100 data sheets (dense float16 tensor rate, clock), CUDA C++ programming guide (arithmetic
    throughput by compute capability), AMD MI300X data sheet and CDNA 3 white paper. Three numbers are assumptions, from
    published microbenchmarks: `mma` (Luo et al., "Benchmarking and Dissecting the Nvidia Hopper GPU Architecture",
    arXiv 2402.13499: mma reaches about 62 % of what wgmma does), `l2`, and what `bench.cuda_model` says of latencies.

    Attributes:
        tensor: float16 multiply-adds on the tensor cores; `mma` those that mma.sync reaches.
        exponentials: results of the special function unit.
        shared: bytes between registers and shared memory or first-level cache.
        issue: thread instructions.
        fp32: float32 additions, multiplications, multiply-adds; 32-bit integer multiply-adds run there too.
        integer: integer and logic operations, selections, comparisons, minima and maxima.
        shuffles: numbers exchanged between lanes.
        conversions: between float32 and float64.
        l2: bytes from the second-level cache, all multiprocessors reading.
        memory: bytes per second of the device's memory.
        l2_bytes: size of the second-level cache.
    """

    name: str
    architecture: str
    processors: int
    clock: float
    tensor: int
    exponentials: int
    shared: int
    issue: int
    mma: int = 0
    fp32: int = 128
    integer: int = 64
    shuffles: int = 32
    conversions: int = 16
    l2: float = 0.0
    memory: float = 0.0
    l2_bytes: int = 0

    @property
    def clocks(self) -> float:
        """Clocks of all multiprocessors in a second."""
        return self.processors * self.clock


GPUS = (
    Gpu("H200", "sm_90", 132, 1.83e9, 2048, 16, 128, 128, mma=1270, l2=23.0, memory=4.8e12, l2_bytes=50 << 20),
    Gpu("A100", "sm_80", 108, 1.41e9, 1024, 16, 128, 128, mma=1024, fp32=64, l2=26.0, memory=2.0e12, l2_bytes=40 << 20),
    Gpu("MI300X", "gfx942", 304, 2.1e9, 1024, 16, 128, 64),
)


@dataclass(frozen=True)
class Limits:
    """What a multiprocessor holds (CUDA C++ programming guide, "Technical Specifications per Compute Capability").

    Registers are given out 256 at a time to a warp, and a block takes 1 KB of shared memory besides its own.
    """

    warps: int
    blocks: int
    registers: int
    shared: int  # bytes on a multiprocessor
    shared_of_block: int  # bytes that one block may have
    cache: int  # bytes of shared memory and first-level cache together

    def resident_blocks(self, threads: int, registers: int, shared: int) -> int:
        """Blocks of `threads` threads, with so many registers a thread and bytes of shared memory, that fit at once."""
        warps = -(-threads // 32)
        of_warp = -(-registers * 32 // 256) * 256
        fits = [self.blocks, self.warps // warps, self.shared // (shared + 1024)]
        # A quarter of the registers belongs to each of four schedulers, and a warp's lie with its scheduler.
        fits.append(4 * (self.registers // 4 // of_warp) // warps if of_warp else self.blocks)
        return 0 if shared > self.shared_of_block else min(fits)


LIMITS = {
    "sm_80": Limits(64, 32, 65536, 164 << 10, 163 << 10, 192 << 10),
    "sm_90": Limits(64, 32, 65536, 228 << 10, 227 << 10, 256 << 10),
    "sm_90a": Limits(64, 32, 65536, 228 << 10, 227 << 10, 256 << 10),
    "sm_100": Limits(64, 32, 65536, 228 << 10, 227 << 10, 256 << 10),
}
