"""Runs the small C++ programs of csrc/bench, built with all that this processor has, and reports what they measure."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable

from train.machine import describe, slug
from bench.results import RESULTS

SOURCES = Path(__file__).resolve().parents[2] / "csrc" / "bench"


class CompilerError(RuntimeError):
    """There is no such compiler, or it does not compile the program; the message says which."""


def json_lines(source: Path, compiler: str) -> list[dict[str, Any]]:
    """The objects that the program prints, one per line.

    Args:
        source: a C++17 file.
        compiler: name or path of GCC or Clang.
    """
    if shutil.which(compiler) is None:
        raise CompilerError(f"no compiler {compiler!r}; --compiler names another")
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / source.stem)
        command = [compiler, "-std=c++17", "-O3", "-march=native", "-fno-math-errno", str(source), "-o", program]
        built = subprocess.run(command, capture_output=True, text=True)
        if built.returncode != 0:
            raise CompilerError(f"{compiler} failed on {source.name}: {built.stderr.strip()[:500]}")
        lines = subprocess.run([program], check=True, capture_output=True, text=True).stdout.splitlines()
    return [json.loads(line) for line in lines]


def report(
    benchmark: str,
    part: str,
    measure: Callable[[], list[dict[str, Any]]],
    table: Callable[[dict[str, Any]], str],
    path: Path | None,
) -> int:
    """Measures, writes the JSON and prints the table; returns the exit status.

    Args:
        benchmark: names the record and, with the processor, its file in `bench/results`.
        part: the record's key for what was measured.
        measure: does the work; a `CompilerError` becomes a message.
        table: a record as markdown.
        path: the file to write instead.
    """
    machine = describe(threads=1)  # while the machine is still idle
    try:
        record = {"schema": 1, "benchmark": benchmark, "machine": machine, part: measure()}
    except CompilerError as error:
        print(f"bench.{benchmark}: {error}", file=sys.stderr)
        return 1
    path = path or RESULTS / f"{benchmark}-{slug(machine['cpu'])}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record))
    print(f"written: {path.name}")
    return 0
