"""Every C++ header compiles by itself and without a warning, so that an editor's language server understands it.

Headers of CUDA kernels are compiled for the host, as the emulation of tests/kernels/cuda compiles them.
"""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

import emulated
import pytest

CSRC = emulated.ROOT / "csrc"
EMULATION = emulated.ROOT / "tests" / "kernels" / "cuda" / "emulation"
HEADERS = sorted(path for folder in (CSRC, EMULATION) for path in folder.rglob("*.h*")) + sorted(CSRC.rglob("*.cuh"))
# Instruction sets that an editor may be told to compile for.
TARGETS = {"avx2": ["-mavx2", "-mfma"], "avx512": ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq"]}


def complaints(header: Path, *flags: str) -> str:
    """What the compiler says of a source that includes this header and nothing else."""
    if header.suffix == ".cuh":
        flags += ("-DCPK_EMULATE", "-Wno-unknown-pragmas", f"-I{EMULATION}", "-include", "emulation.h")
    pybind11 = pytest.importorskip("pybind11") if "pybind11" in header.read_text() else None
    for folder in [sysconfig.get_path("include"), pybind11.get_include()] if pybind11 else []:
        flags += ("-isystem", folder)
    command = ["c++", "-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", *flags, "-x", "c++", "-"]
    source = f'#include "{header}"\n'
    return subprocess.run(command, input=source, capture_output=True, text=True, timeout=60, check=False).stderr


@pytest.fixture(autouse=True)
def compiler():
    emulated.skip_without_compiler()


@pytest.mark.parametrize("header", HEADERS, ids=lambda header: str(header.relative_to(emulated.ROOT)))
def test_header_alone(header):
    assert complaints(header) == ""


@pytest.mark.skipif(sysconfig.get_platform() != "linux-x86_64", reason="the instruction sets are those of x86-64")
@pytest.mark.parametrize("target", TARGETS)
def test_vectors_of_each_length(target):
    assert complaints(CSRC / "cpu" / "shard.h", *TARGETS[target]) == ""


def test_a_header_that_leans_on_another_is_noticed(tmp_path):
    text = (CSRC / "cpu" / "vector.h").read_text()
    (tmp_path / "vector.h").write_text(text.replace('#include "target.h"', ""))
    assert "CPK_LANES" in complaints(tmp_path / "vector.h")
    (tmp_path / "unused.h").write_text("static void unused(int argument) {}\n")
    assert "unused parameter" in complaints(tmp_path / "unused.h")
