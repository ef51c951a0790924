"""Builds the CUDA kernels for the thread model of tests/kernels/cuda/emulation and loads them as a module."""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# cmake and ninja of the test environment lie beside its interpreter, which need not be on the path.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def run(*command) -> str:
    """Standard output of a command; its whole output if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env={**os.environ, "PATH": PATH})
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def skip_without_compiler() -> None:
    """Skip the test where nothing can be built."""
    if shutil.which("c++", path=PATH) is None or shutil.which("cmake", path=PATH) is None:
        pytest.skip("needs cmake and a C++ compiler")


@functools.lru_cache(maxsize=1)
def kernels():
    """The module `_cuda_emulated`, built once per interpreter under build/; test processes wait for each other."""
    skip_without_compiler()
    import pybind11

    folder = ROOT / "build" / f"cuda_emulation-{sys.implementation.cache_tag}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run("cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
            "-DCPLEARN_CUDA=OFF", "-DCPLEARN_BUILD_EMULATION=ON", f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}")  # fmt: skip
        run("cmake", "--build", str(folder), "--target", "_cuda_emulated")
    (path,) = folder.glob("_cuda_emulated*.so")
    spec = importlib.util.spec_from_file_location("_cuda_emulated", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
