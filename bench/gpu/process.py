"""Runs a command for at most so many seconds and ends it with everything that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What one step may take of the time left, unless it is the last: a hang must not cost all others.
MOST_OF_THE_REST = 0.6


@dataclass(frozen=True)
class Ended:
    """What became of a command: its output (both streams), its status, its time, whether it had to be ended."""

    text: str
    status: int
    seconds: float
    timed_out: bool


def run(command: Sequence[str], seconds: float, log: Path, environment: Mapping[str, str] | None = None) -> Ended:
    """Runs a command in the checkout, with more environment variables; its output goes to the end of `log` at once."""
    began = time.monotonic()
    variables = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}
    with log.open("ab") as output:
        output.write(f"\n$ {' '.join(command)[:300]}\n".encode())
        output.flush()
        start = output.tell()
        # A session of its own, so that compilers and test workers can be ended with it.
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=variables, start_new_session=True
        )
        try:
            process.wait(timeout=max(seconds, 0.0))
        except subprocess.TimeoutExpired:
            pass
        finally:
            timed_out = process.poll() is None
            if timed_out:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    text = log.read_bytes()[start:].decode(errors="replace")
    return Ended(text, process.returncode, round(time.monotonic() - began, 1), timed_out)


def in_turn(names: Sequence[str], until: float) -> Iterator[tuple[str, float]]:
    """(name, seconds that it may take), one after the other; `until` is a moment of `time.monotonic`."""
    for name in names:
        left = max(until - time.monotonic(), 0.0)
        yield name, left if name == names[-1] else MOST_OF_THE_REST * left
