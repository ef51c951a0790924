"""Measures how far one call raises a process's peak memory; `python -m bench.memory` is one such process.

Peak resident memory never falls, so every implementation of every case gets a fresh process. Linux only: the peak is VmHWM of
/proc/self/status, set back to the current size just before the call by writing 5 to /proc/self/clear_refs. (The peak
of getrusage would not do: a child starts with the peak of the process that forked it.)
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.cases import ALL, TITLES, Case

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")

# glibc's M_MMAP_THRESHOLD, and the value it starts from.
_M_MMAP_THRESHOLD, _THRESHOLD = -3, 128 * 1024


class MemoryProbeError(RuntimeError):
    """Peak memory cannot be measured here, or the measuring process failed."""


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise MemoryProbeError(f"{_STATUS} has no field {field}")


def peak_growth(call: Callable[[], Any]) -> dict[str, int]:
    """Runs `call` once; bytes resident before it, at its peak, and the difference.

    Memory that the allocator holds free is given back to the system first: otherwise a call could use it and seem to
    need none.
    """
    if not _STATUS.exists():
        raise MemoryProbeError("peak memory is read from /proc, which this system does not have")
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl does not
    if trim is not None:
        trim(0)
    try:
        _CLEAR_REFS.write_text("5")
    except OSError as error:
        raise MemoryProbeError(f"the peak cannot be set back through {_CLEAR_REFS}: {error}") from error
    before = _status_bytes("VmRSS")
    call()
    peak = _status_bytes("VmHWM")
    return {"before_bytes": before, "peak_bytes": peak, "growth_bytes": max(peak - before, 0)}


def _give_back_at_once() -> None:
    """Makes glibc return every freed array to the system, in this process from now on.

    By default it raises the size from which it does so as arrays are freed, and keeps the smaller ones; the authors'
    formula on n=64 f=128 c=16384 then peaked at 75 or at 129 MB, differently from run to run. With the threshold fixed
    it is 58 MB every time: what the formula needs, without what the allocator hoards.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _THRESHOLD)


def probe(implementation: str, case: Case, backend: str) -> dict[str, int]:
    """Peak growth of one forward + backward of an implementation on `case`, in this process.

    The inputs and, for the formulas, the dense dictionary exist before the call; the latter is reported on its own as
    `codes_bytes`. A tiny call loads code and starts threads first. The compiled formula is warmed up on the problem
    itself instead, since compiling takes more memory than running.
    """
    from bench.implementations import Problem, build_loss, forward_backward

    problem = Problem(case)
    loss = build_loss(implementation, problem, backend)
    codes_bytes = problem.codes_bytes(implementation)
    if implementation == "compiled":
        forward_backward(loss, problem)
    else:
        tiny = Problem(Case(2, 16, 64, dictionary=case.dictionary))
        forward_backward(build_loss(implementation, tiny, backend), tiny)
    result = peak_growth(lambda: forward_backward(loss, problem))
    return {**result, "codes_bytes": codes_bytes}


@functools.cache
def probe_in_fresh_process(implementation: str, case: Case, backend: str, threads: int) -> dict[str, int]:
    """`probe` in a process of its own, started from the checkout's root; once for equal arguments."""
    command = [sys.executable, "-m", "bench.memory", "--implementation", implementation, "--backend", backend]
    command += ["--threads", str(threads), "--n", str(case.n), "--num-features", str(case.num_features)]
    command += ["--num-codes", str(case.num_codes), "--dictionary", case.dictionary]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise MemoryProbeError(f"the memory probe of {implementation} on {case.name} failed: {last[0]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: list[str] | None = None) -> int:
    """Probes one implementation on one case and prints the result as one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__.splitlines()[0])
    add = parser.add_argument
    names = "; ".join(f"{name}: {TITLES[name]}" for name in ALL)
    add("--implementation", choices=ALL, default=ALL[0], help=names)
    add("--backend", default="cpu", help="the library's backend (default: cpu)")
    add("--threads", type=int, default=2, help="torch threads (default: 2)")
    add("--n", type=int, default=64, help="rows per view (default: 64)")
    add("--num-features", type=int, default=128, help="length of an embedding (default: 128)")
    add("--num-codes", type=int, default=1 << 14, help="number of codes (default: 16384)")
    add("--dictionary", default="hadamard", choices=["hadamard", "rademacher"], help="kind of dictionary")
    given = parser.parse_args(arguments)

    import torch

    _give_back_at_once()
    torch.set_num_threads(given.threads)
    case = Case(given.n, given.num_features, given.num_codes, dictionary=given.dictionary)
    try:
        print(json.dumps(probe(given.implementation, case, given.backend)))
    except (MemoryProbeError, ValueError, RuntimeError) as error:
        print(f"bench.memory: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
