"""Runs the small C++ programs of csrc/bench, built with all that this processor has."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).resolve().parent.parent / "csrc" / "bench"


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
