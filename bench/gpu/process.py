"""Runs a command for at most so many seconds, and ends it with everything that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Ended:
    """What became of a command: its output (both streams), its status, its time, whether it had to be ended."""

    lines: list[str]
    status: int
    seconds: float
    timed_out: bool


def run(command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None) -> Ended:
    """Runs a command in the checkout.

    Args:
        command: program and arguments.
        seconds: when it is ended; what it printed until then is kept.
        environment: variables beside those of this process.

    Raises:
        OSError: the program cannot be started.
    """
    began = time.monotonic()
    with tempfile.TemporaryFile(mode="w+", errors="replace") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
                                   env={**os.environ, **(environment or {})})  # fmt: skip
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            timed_out = process.poll() is None
            end(process)
        output.seek(0)
        lines = output.read().splitlines()
    return Ended(lines, process.returncode, time.monotonic() - began, timed_out)


def end(process: subprocess.Popen) -> None:
    """Ends a process started in a session of its own, with those it started itself (compilers, workers)."""
    if process.poll() is None:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()
