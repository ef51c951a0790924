"""Reads registers, stack and shared memory of all kernels out of the installed extension; nothing is compiled."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from bench.cuda_kernels import readable


def tool(name: str) -> str | None:
    """A program of NVIDIA's toolkit, from PATH or from the triton package; None where there is none."""
    found = shutil.which(name)
    if found:
        return found
    triton = importlib.util.find_spec("triton")
    if triton is None or not triton.origin:
        return None
    path = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / name
    return str(path) if path.exists() else None


def extension() -> Path | None:
    """The file of the compiled core, None where it is not built."""
    found = importlib.util.find_spec("cplearn_kernels._core")
    return Path(found.origin) if found and found.origin else None


def parse_usage(text: str) -> list[dict[str, Any]]:
    """What `cuobjdump --dump-resource-usage` prints: one record per kernel and architecture."""
    records, arch = [], ""
    for line in text.splitlines():
        if found := re.match(r"\s*arch = (sm_\w+)", line):
            arch = found.group(1)
        elif found := re.match(r"\s*Function (\S+?):", line):
            records.append({"arch": arch, "mangled": found.group(1), "kernel": readable(found.group(1))})
        elif records and "REG:" in line and "registers" not in records[-1]:
            numbers = {name: int(value) for name, value in re.findall(r"([A-Z]+):(\d+)", line)}
            records[-1].update(registers=numbers["REG"], stack=numbers.get("STACK", 0), shared=numbers.get("SHARED", 0),
                               local=numbers.get("LOCAL", 0))  # fmt: skip
    return records


def usage(path: Path) -> list[dict[str, Any]] | str:
    """Records of all kernels in a file, or a sentence saying why there are none."""
    program = tool("cuobjdump")
    if program is None:
        return "no cuobjdump: it is part of NVIDIA's CUDA toolkit and of the triton package"
    done = subprocess.run([program, "--dump-resource-usage", str(path)], capture_output=True, text=True)
    if "does not contain device code" in done.stdout + done.stderr:
        return f"{path.name} holds no CUDA kernels: it was built without them"
    if done.returncode:
        return f"cuobjdump failed on {path.name}: {done.stderr.strip()}"
    return parse_usage(done.stdout)


def report(path: Path | None = None) -> tuple[int, str]:
    """(exit status, text): 0 if no kernel uses a stack or local memory, 1 where one does, 2 if nothing can be read."""
    path = path or extension()
    if path is None:
        return 2, "cplearn_kernels._core is not built"
    records = usage(path)
    if isinstance(records, str):
        return 2, records
    lines = []
    for arch in sorted({record["arch"] for record in records}):
        of_arch = [record for record in records if record["arch"] == arch]
        most = max(of_arch, key=lambda record: record["registers"])
        lines.append(f"{arch}: {len(of_arch)} kernels, at most {most['registers']} registers ({most['kernel']})")
    bad = [record for record in records if record["stack"] or record["local"]]
    lines += [f"{r['arch']} {r['kernel']}: {r['stack']} bytes of stack, {r['local']} of local memory: {r['mangled']}"
              for r in bad]  # fmt: skip
    lines.append(f"{len(records)} kernels in {path.name}, {len(bad)} with a stack or local memory")
    return int(bool(bad) or not records), "\n".join(lines)
