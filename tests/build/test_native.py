"""Builds the C++ test program (csrc/tests) as a user would, plain and sanitized, and runs some cases of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cplearn_kernels.backends.cpu import functions as cpu

ROOT = Path(__file__).resolve().parents[2]
# cmake and ninja of the test environment lie beside its interpreter, which need not be on the path.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
COMPILER = shutil.which("c++", path=PATH)

pytestmark = pytest.mark.skipif(
    COMPILER is None or shutil.which("cmake", path=PATH) is None, reason="needs cmake and a C++ compiler"
)


def run(*command):
    """Standard output of a command; its whole output if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env={**os.environ, "PATH": PATH})
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def build(folder, targets, sanitize=""):
    run("cmake", "-S", str(ROOT), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Release", "-DCPLEARN_BUILD_PYTHON=OFF",
        "-DCPLEARN_BUILD_TESTS=ON", f"-DCPLEARN_TARGETS={';'.join(targets)}",
        f"-DCPLEARN_SANITIZE={sanitize}")  # fmt: skip
    run("cmake", "--build", str(folder), "--parallel", "2")
    return str(folder / "test_kernels")


def cases_passed(output):
    return int(re.search(r"^all (\d+) cases passed$", output, re.MULTILINE).group(1))


def assert_kept_apart(compiled, target):
    """Of a function that two instruction sets had under one name the linker would keep one, for all processors."""
    symbols = [line.split(maxsplit=2)[1:] for line in run("nm", "-C", "--defined-only", str(compiled)).splitlines()]
    functions = [name for kind, name in symbols if kind in "TWu"]
    assert functions and all(f"cplearn::{target}::" in name for name in functions), functions


def test_every_instruction_set(tmp_path):
    program = build(tmp_path, cpu.targets())
    output = run(program, "--cases", "60", "--seed", "1000")
    assert cases_passed(output) == 60 * len(cpu.targets())
    for target in cpu.targets():
        assert f"{target}: 60 cases" in output
        assert_kept_apart(tmp_path / "CMakeFiles" / f"cpu_{target}.dir" / "csrc" / "cpu" / "target.cpp.o", target)
    nothing = subprocess.run([program, "--target", "sse9"], capture_output=True, text=True, timeout=60)
    assert nothing.returncode == 1 and "nothing was run" in nothing.stdout


@pytest.mark.slow
def test_address_and_undefined_behaviour_sanitizers(tmp_path):
    """The widest vectors that run here are those whose overruns would hide best; `make sanitize` runs more."""
    probe = tmp_path / "probe.cpp"
    probe.write_text("int main() {}")
    flags = ["-fsanitize=address,undefined", str(probe), "-o", str(tmp_path / "probe")]
    if subprocess.run([COMPILER, *flags], capture_output=True).returncode != 0:
        pytest.skip("the compiler has no sanitizers")
    target = cpu.targets()[0]
    program = build(tmp_path, ["baseline", target], "address,undefined")
    assert cases_passed(run(program, "--cases", "25", "--seed", "2000", "--target", target)) == 25
