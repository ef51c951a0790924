"""Describes the machine, the software and the commit that a measurement belongs to."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

# The CPU flags that decide which code runs; hundreds of others do not matter here.
_TELLING_FLAGS = [
    "sse4_2",
    "avx",
    "avx2",
    "fma",
    "avx512f",
    "avx512bw",
    "avx512_bf16",
    "amx_bf16",
    "neon",
    "asimd",
    "sve",
]


def cpu_fields(cpuinfo: str) -> dict[str, Any]:
    """Model string and telling flags from the text of /proc/cpuinfo.

    Virtual machines often hide the model's number: family and model then tell generations apart.
    """
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, separator, value = line.partition(":")
        if separator:
            fields.setdefault(key.strip(), value.strip())
    present = set(fields.get("flags", fields.get("Features", "")).split())
    model = fields.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in fields and "model" in fields:
        model += f" (family {fields['cpu family']}, model {fields['model']})"
    return {"cpu": model, "cpu_flags": [flag for flag in _TELLING_FLAGS if flag in present]}


def slug(text: str) -> str:
    """`text` as a piece of a file name: lower case letters, digits and single hyphens."""
    without_marks = re.sub(r"\((r|tm)\)", "", text.lower())
    return re.sub(r"[^a-z0-9]+", "-", without_marks).strip("-")


def git_commit(root: Path) -> str | None:
    """Short commit of the checkout, with `-dirty` when files other than results differ; None outside git."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results")
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("-dirty" if changed else "")


def library_version() -> str:
    """Version of cplearn_kernels, from the package itself or from its installed metadata."""
    import cplearn_kernels

    version = getattr(cplearn_kernels, "__version__", None)
    if version is not None:
        return str(version)
    try:
        return importlib.metadata.version("cplearn-kernels")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def describe(threads: int) -> dict[str, Any]:
    """Everything that a reader needs to place a number: processor, threads, versions, commit, date, load.

    `load_average` is that of the minute before; above 0.5 or so something else was running.
    """
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    return {
        **cpu_fields(cpuinfo.read_text() if cpuinfo.exists() else ""),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "logical_cpus": os.cpu_count(),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cplearn_kernels": library_version(),
        "commit": git_commit(Path(__file__).resolve().parent.parent),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
