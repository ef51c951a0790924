"""On which architectures the CUDA kernels have been tested, and for which calls they are the default.

`architectures.json` is the record: "verified" lists architectures ("sm_90") on which all GPU tests of the backend
have passed (docs/gpu-status.md says when); "preferred_over_triton" maps an architecture and a kind of dictionary to the
numbers of features, [least, most], between which measurements there found this backend the faster of the two. Triton's
kernels have a record of their own, in ../triton/tuning.json.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch

from ...dictionary import Dictionary

_RECORD = Path(__file__).with_name("architectures.json")


@functools.lru_cache(maxsize=1)
def _record() -> dict[str, Any]:
    return json.loads(_RECORD.read_text())


def verified() -> tuple[str, ...]:
    """The architectures on which the tests have run and passed."""
    return tuple(_record()["verified"])


@functools.lru_cache(maxsize=16)
def name(device: torch.device) -> str:
    """The architecture of a GPU, as "sm_90"."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def reservation(device: torch.device) -> str | None:
    """Why a call that names no backend should not go to the CUDA kernels, or None."""
    architecture = name(device)
    return None if architecture in verified() else f"its tests have not been run on {architecture}: name it to use it"


def preferred(dictionary: Dictionary, device: torch.device) -> bool:
    """Whether the CUDA kernels have been measured to be faster than Triton's for such a dictionary on such a GPU."""
    ranges = _record()["preferred_over_triton"].get(name(device), {})
    least, most = ranges.get(dictionary.kind, (1, 0))
    return least <= dictionary.num_features <= most
