"""Describes the GPU, its software and the library's backends there, as JSON on stdout; finds the compiled core first.

A process of its own (`python -m bench.gpu.machine`): starting a driver may hang, and the one that watches must not.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from bench.gpu.process import ROOT

PACKAGE = "cplearn_kernels"


def adopt_core(root: Path = ROOT, path: list[str] | None = None) -> str | None:
    """Copies the installed package's compiled core into the checkout `root`, where that has none or an older one.

    What runs in the checkout imports the checkout's package, which hides the one that `pip install .` put elsewhere on
    the `path`; without its core there is no backend "cuda". To be called before anything imports the package. Returns a
    sentence on what was done.
    """
    name = f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
    target = root / PACKAGE / name
    sources = [Path(entry or ".").resolve() / PACKAGE / name for entry in (sys.path if path is None else path)]
    source = next((file for file in sources if file.is_file() and file != target.resolve()), None)
    if source is None or (target.exists() and source.stat().st_mtime <= target.stat().st_mtime):
        return None
    shutil.copy2(source, target)  # with its time, so that the next install is seen to be newer
    return f"the compiled core of {source.parent} was copied into the checkout"


def describe() -> dict[str, Any]:
    """`train.machine.describe` with the GPU and its software; `backends`: name -> None, or why it cannot run here."""
    import torch

    import cplearn_kernels as cpk
    from train import machine

    found = machine.describe(torch.get_num_threads())
    found |= {"gpu": None, "CUDA": torch.version.cuda, "HIP": torch.version.hip}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        name = f"sm_{properties.major}{properties.minor}"
        found["gpu"] = properties.name
        found["architecture"] = properties.gcnArchName.split(":")[0] if torch.version.hip else name
    command = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        found["driver"] = done.stdout.partition("\n")[0]
    reasons = {name: None if info.available else info.reason for name, info in cpk.backends().items()}
    return {**found, "backends": reasons}


if __name__ == "__main__":
    print(json.dumps(describe()))
