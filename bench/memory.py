"""Measures how far one call raises a process's peak memory.

Peak resident memory never falls, so every implementation of every case gets a fresh process. Linux only: the peak is
VmHWM of /proc/self/status, set back to the current size just before the call by writing 5 to /proc/self/clear_refs.
(The peak of getrusage would not do: a child starts with the peak of the process that forked it.)
"""

from __future__ import annotations

import ctypes
import functools
import gc
import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from bench.cases import FORMULAS, Case
from bench.implementations import Problem, build

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")

# glibc's M_MMAP_THRESHOLD, and the value it starts from.
_M_MMAP_THRESHOLD, _THRESHOLD = -3, 128 * 1024


def _status_bytes(field: str) -> int:
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", _STATUS.read_text())[1])


def peak_growth(call: Callable[[], Any]) -> dict[str, int]:
    """Runs `call` once; bytes resident before it, at its peak, and the difference.

    Memory that the allocator holds free is given back to the system first: otherwise a call could use it and seem to
    need none.
    """
    if not _STATUS.exists():
        raise OSError("peak memory is read from /proc, which this system does not have")
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl does not
    if trim is not None:
        trim(0)
    _CLEAR_REFS.write_text("5")
    before = _status_bytes("VmRSS")
    call()
    peak = _status_bytes("VmHWM")
    return {"before_bytes": before, "peak_bytes": peak, "growth_bytes": max(peak - before, 0)}


def probe(implementation: str, case: Case, backend: str) -> dict[str, int]:
    """Peak growth of one forward + backward of an implementation on `case`, in this process.

    The inputs and, for the formulas, the dense dictionary exist before the call; the latter is reported on its own as
    `codes_bytes`. A tiny call loads code and starts threads first. The compiled formula is warmed up on the problem
    itself instead, since compiling takes more memory than running.
    """
    problem = Problem(case)
    call = build(implementation, problem, backend)
    if implementation == "compiled":
        call()
    else:
        build(implementation, Problem(Case(2, 16, 64, dictionary=case.dictionary)), backend)()
    return {**peak_growth(call), "codes_bytes": problem.weight().nbytes if implementation in FORMULAS else 0}


@functools.cache
def probe_in_fresh_process(implementation: str, case: Case, backend: str, threads: int) -> dict[str, int]:
    """`probe` in a process of its own; once for equal arguments."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _prepare, (threads,)) as fresh:
        return fresh.submit(probe, implementation, case, backend).result(timeout=600)


def _prepare(threads: int) -> None:
    """Sets the number of threads, and makes glibc return every freed array to the system.

    By default it raises the size from which it does so as arrays are freed, and keeps the smaller ones; the authors'
    formula on n=64 f=128 c=16384 then peaked at 75 or at 129 MB, differently from run to run. With the threshold fixed
    it is 58 MB every time: what the formula needs, without what the allocator hoards.
    """
    torch.set_num_threads(threads)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _THRESHOLD)
