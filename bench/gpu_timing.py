"""Clocks of the GPU benchmark: deadline, CUDA events or a wall clock, turns, peak memory, the device's own rates."""

from __future__ import annotations

import gc
import math
import time
from typing import Any, Callable, Mapping

import torch

Call = Callable[[], Any]
MOST_REPEATS = 500


class Deadline:
    """A moment that everything has to be over by.

    Args:
        seconds: from now.
        clock: a monotonic clock in seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._end = clock, clock() + seconds

    def remaining(self) -> float:
        """Seconds left, 0 when it is over."""
        return max(self._end - self._clock(), 0.0)

    def fits(self, seconds: float) -> bool:
        """Whether something that takes `seconds` is over in time."""
        return seconds < self.remaining()


class WallTimer:
    """Times calls that are over when they return."""

    def seconds(self, call: Call, count: int = 1) -> float:
        """Seconds per call, over `count` calls."""
        began = time.perf_counter()
        for _ in range(count):
            call()
        return max((time.perf_counter() - began) / count, 1e-9)

    def peak_bytes(self, call: Call) -> int | None:
        """Growth of the device's memory during a call; None: nothing counts it here."""
        call()
        return None


class EventTimer:
    """Times calls by CUDA events around them: the device's own clock, waits for the host included."""

    def seconds(self, call: Call, count: int = 1) -> float:
        """Seconds per call, over `count` calls that follow each other without a wait."""
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        for _ in range(count):
            call()
        end.record()
        end.synchronize()
        return max(begin.elapsed_time(end) * 1e-3 / count, 1e-9)

    def peak_bytes(self, call: Call) -> int | None:
        """The most that torch's allocator held during a call, above what it held before (inputs, dense weight)."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before


def timer_for(device: torch.device) -> WallTimer | EventTimer:
    """The timer that fits the device."""
    return EventTimer() if device.type == "cuda" else WallTimer()


def alternate(
    calls: Mapping[str, Call],
    took: Mapping[str, float],
    timer: WallTimer | EventTimer,
    deadline: Deadline,
    *,
    rounds: int,
    turn_seconds: float,
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds per call of warmed-up calls that take turns, in alternating direction.

    Args:
        calls: the callables by name.
        took: seconds of one call of each, which decide how often it is repeated within its turn.
        timer: measures one turn.
        deadline: no round is begun that would not be over in time.
        rounds: how many turns each call gets.
        turn_seconds: how long a turn should last at least.

    Returns:
        (seconds, errors). `seconds[name]` holds one number per round; the numbers at one place of all names come from
        the same round. A call that raises is dropped and its message is in `errors`.
    """
    repeats = {name: min(max(math.ceil(turn_seconds / took[name]), 1), MOST_REPEATS) for name in calls}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    errors: dict[str, str] = {}
    gc.disable()  # a collection takes 0.1 s once a compiler is loaded
    try:
        for index in range(rounds):
            alive = [name for name in calls if name not in errors]
            if not deadline.fits(sum(took[name] * repeats[name] for name in alive)):
                break
            for name in alive if index % 2 == 0 else reversed(alive):
                try:
                    seconds[name].append(timer.seconds(calls[name], repeats[name]))
                except Exception as error:
                    errors[name] = message(error)
                    seconds.pop(name)
    finally:
        gc.enable()
    return seconds, errors


def message(error: BaseException) -> str:
    """Kind and first line of an error, short enough for a table."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def rates(device: torch.device) -> dict[str, Any]:
    """What the device reaches in plain torch: bytes copied (read + written) and matrix operations, per second.

    On a GPU a copy of 1 GiB and products of 8192 x 8192 random matrices; random, because a chip that computes with
    zeros needs less power and runs faster.
    """
    on_gpu = device.type == "cuda"
    timer, size = timer_for(device), 8192 if on_gpu else 256
    source = torch.randn((1 << 28) if on_gpu else (1 << 20), device=device)
    target = torch.empty_like(source)
    copied = 2 * source.numel() * source.element_size()
    found: dict[str, Any] = {"copy_bytes_per_second": copied / _best(timer, lambda: target.copy_(source)), "matmul": {}}
    del source, target
    for precision in ("float32", "tf32", "bf16"):
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        set_precision(precision)
        found["matmul"][precision] = 2 * size**3 / _best(timer, lambda a=a, b=b: a @ b)
    set_precision("float32")
    return found


def set_precision(precision: str) -> None:
    """Whether float32 products may use TF32. The same call serves all versions of torch."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


def _best(timer: WallTimer | EventTimer, call: Call) -> float:
    for _ in range(3):
        call()
    return sorted(timer.seconds(call, 5) for _ in range(3))[1]
