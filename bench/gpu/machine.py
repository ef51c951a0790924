"""What the GPU benchmark runs on: the device and its software, its free memory, the library's backends there."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

import cplearn_kernels as cpk
from bench import machine
from bench.gpu_rows import BACKENDS
from cplearn_kernels.backends.cuda import functions as cuda
from cplearn_kernels.backends.triton import functions as triton_backend

_ON_GPU = {module.NAME: module for module in (cuda, triton_backend)}


def describe(device: torch.device, commit: str | None) -> dict[str, Any]:
    """`bench.machine.describe`, and the GPU: name, architecture, memory, driver, CUDA or HIP, Triton."""
    found = machine.describe(torch.get_num_threads())
    found["commit"] = found["commit"] or commit
    try:
        found["triton"] = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        found["triton"] = None
    found |= {"gpu": None, "architecture": "cpu", "cuda": torch.version.cuda, "hip": torch.version.hip, "driver": None}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"gpu": properties.name, "architecture": architecture(properties), "driver": _driver(),
                  "gpu_memory_bytes": properties.total_memory, "multiprocessors": properties.multi_processor_count}
    return found


def architecture(properties: Any) -> str:
    """sm_90, gfx942: the name that compilers take."""
    if torch.version.hip:
        return properties.gcnArchName.split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def free_bytes(device: torch.device) -> int:
    """Memory that a call could still take, what torch's allocator holds without using it included."""
    if device.type != "cuda":
        return 1 << 30  # the dry run is tiny
    free, _ = torch.cuda.mem_get_info()
    return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def usable_backends(named: list[str] | None, dry_run: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """The library's backends to measure, fastest first, and the reasons against the others.

    Args:
        named: these only; None: all that run on GPU tensors, or "torch" in a dry run.
        dry_run: whether there is no GPU.
    """
    known = cpk.backends()
    wanted = named or (["torch"] if dry_run else list(BACKENDS))
    usable, refused = {}, {}
    for name in wanted:
        info = known.get(name)
        if info is None or not info.available:
            refused[name] = info.reason if info is not None else "no such backend"
            continue
        # Kernels may be there and not serve this GPU: too old, another maker's. Only asked, no call is made: one that
        # fails is a result, for the tests and the cells to tell, and should not happen in the process that watches.
        asked = _ON_GPU.get(name) if not dry_run else None
        reason = asked.unsupported_device(torch.device("cuda", 0)) if asked else None
        if reason is not None:
            refused[name] = reason
        else:
            usable[name] = info
    return usable, refused


def _driver() -> str | None:
    if torch.version.hip:
        version = Path("/sys/module/amdgpu/version")
        return version.read_text().strip() if version.exists() else None
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout.splitlines() or [None])[0]
