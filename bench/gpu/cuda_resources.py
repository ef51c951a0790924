"""Reads registers, stack and static shared memory of every CUDA kernel from the installed extension; compiles nothing.

python -m bench.gpu.cuda_resources      # JSON in bench/results; status 1 where a kernel has a stack: there spills live
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bench.results import RESULTS


def tool(name: str) -> str | None:
    """A program of NVIDIA's toolkit, from PATH or from the triton package; None where there is none."""
    triton = importlib.util.find_spec("triton")
    folder = str(Path(triton.origin).parent / "backends" / "nvidia" / "bin") if triton and triton.origin else None
    return shutil.which(name) or shutil.which(name, path=folder)


def read(path: Path | None = None) -> list[dict[str, Any]] | str:
    """A record per kernel and architecture in a file (None: the compiled core), or a sentence why there are none."""
    found = importlib.util.find_spec("cplearn_kernels._core")
    path = path or (Path(found.origin) if found and found.origin else None)
    if path is None:
        return "cplearn_kernels._core is not built"
    program = tool("cuobjdump")
    if program is None:
        return "no cuobjdump: it is part of NVIDIA's CUDA toolkit and of the triton package"
    done = subprocess.run([program, "--dump-resource-usage", str(path)], check=False, capture_output=True, text=True)
    if "does not contain device code" in done.stdout + done.stderr:
        return f"{path.name} holds no CUDA kernels: it was built without them"
    if done.returncode:
        return f"cuobjdump failed on {path.name}: {done.stderr.strip()}"
    return parse(done.stdout)


def parse(text: str) -> list[dict[str, Any]]:
    """What cuobjdump prints: `arch`, `kernel`, `registers`, `stack`, `local` and `shared` bytes of each."""
    if names := shutil.which("c++filt"):
        text = subprocess.run([names], input=text, check=True, capture_output=True, text=True).stdout
    records, arch = [], ""
    for line in text.splitlines():
        if found := re.match(r"\s*arch = (sm_\w+)", line):
            arch = found[1]
        elif found := re.match(r"\s*Function (.+):$", line):
            # weighted_codes<HadamardTiles<11>, (Purpose)0>, of a demangled name's result, scopes and arguments.
            name = re.sub(r"^void |\w+::|\(anonymous namespace\)::", "", found[1])
            records.append({"arch": arch, "kernel": re.sub(r"\([^()]*\)$", "", name)})
        elif records and "REG:" in line and "registers" not in records[-1]:
            numbers = {name: int(value) for name, value in re.findall(r"([A-Z]+):(\d+)", line)}
            records[-1] |= {"registers": numbers["REG"], "stack": numbers.get("STACK", 0),
                            "local": numbers.get("LOCAL", 0), "shared": numbers.get("SHARED", 0)}  # fmt: skip
    return records


def spilling(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that use a stack or local memory."""
    return [record for record in records if record["stack"] or record["local"]]


def write(path: Path, records: list[dict[str, Any]]) -> None:
    """Writes the records, a line each."""
    lines = ",\n".join(map(json.dumps, records))
    path.write_text(f'{{"schema": 2, "kernels": [\n{lines}\n]}}\n')


def main() -> int:
    """The command: 2 where nothing can be read."""
    records = read()
    if isinstance(records, str):
        print(records, file=sys.stderr)
        return 2
    print(tabulate(records, headers="keys"))
    write(RESULTS / "cuda_resources.json", records)
    print(f"{len(records)} kernels, {len(spilling(records))} with a stack or local memory")
    return int(bool(spilling(records)) or not records)


if __name__ == "__main__":
    sys.exit(main())
