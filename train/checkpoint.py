"""Checkpoints: everything a run needs to go on exactly, written so that a crash never leaves half a file."""

from __future__ import annotations

import io
import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from train.config import Config, differing_fields
from train.distributed.processes import Processes
from train.errors import InputError
from train.files import write_atomically


@dataclass
class Progress:
    """Where training stands: with the weights and the optimiser's state, all that later steps depend on.

    No generator state is kept: every random draw of a step follows from the seed and the number of the step.
    """

    step: int = 0
    """Steps done."""
    sums: dict[str, float] = field(default_factory=dict)
    """Sums of the metrics over the steps done of the epoch under way."""
    history: list[dict[str, float]] = field(default_factory=list)
    """One row of metrics per finished epoch, as in metrics.jsonl."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds spent in each part of the steps so far."""
    processes: int = 1
    """Processes that share the steps, ..."""
    threads: int | None = None
    """... and CPU threads of each; None before the first step, and in checkpoints of earlier versions."""


def save(path: Path, config: Config, progress: Progress, method: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Write a checkpoint to `path` atomically."""
    content = pack(config, progress, method, optimiser)
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def pack(config: Config, progress: Progress, method: nn.Module, optimiser: torch.optim.Optimizer) -> memoryview:
    """The bytes of a checkpoint."""
    content = {
        "config": config.to_dict(),
        "progress": asdict(progress),
        "method": method.state_dict(),
        "optimiser": optimiser.state_dict(),
    }
    # Through memory: torch.save reports a full disk as a RuntimeError, which could be anything; a file says OSError.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getbuffer()


def load(path: Path, device: str = "cpu") -> dict[str, Any]:
    """What `save` wrote: plain dictionaries "config", "progress" and "optimiser", and the state dict "method".

    Raises InputError if the file is missing, damaged or none of this program's.
    """
    if not path.is_file():
        raise InputError(f"The checkpoint was {path}, expected an existing file.")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        Progress(**content["progress"])
        if not isinstance(content["config"], dict) or not {"method", "optimiser"} <= content.keys():
            raise ValueError
    except (RuntimeError, EOFError, OSError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(
            f"{path} could not be read ({type(error).__name__}), expected a checkpoint of this program."
        ) from None
    return content


def restore(path: Path, config: Config, method: nn.Module, optimiser: torch.optim.Optimizer) -> Progress:
    """Load the checkpoint at `path` into the method and the optimiser and return where training stood.

    Raises InputError if the file is missing or damaged, or belongs to another configuration (naming the fields).
    """
    if not path.is_file():
        raise InputError(f"--resume was given, expected a checkpoint at {path}, and there is none.")
    content = load(path, config.device)
    if differences := differing_fields(content["config"], config):
        raise InputError(f"{path} is of another configuration, expected the same {', '.join(differences)}.")
    try:
        method.load_state_dict(content["method"])
        optimiser.load_state_dict(content["optimiser"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise InputError(
            f"{path} does not fit this run ({' '.join(str(error).split())}), expected the weights of the "
            f"same method, backbone and dictionary."
        ) from None
    return Progress(**content["progress"])


def share(
    ranks: Processes, config: Config, progress: Progress, method: nn.Module, optimiser: torch.optim.Optimizer
) -> Progress:
    """Give every process what process 0 has: weights, optimiser and progress; the others' `progress` is not looked at.

    One process reads the file, and the rest need not see its folder.
    """
    if ranks.world == 1:
        return progress
    packed = ranks.broadcast(pack(config, progress, method, optimiser) if ranks.first else None)
    if ranks.first:
        return progress
    content = torch.load(io.BytesIO(packed), map_location=config.device, weights_only=True)
    method.load_state_dict(content["method"])
    optimiser.load_state_dict(content["optimiser"])
    return Progress(**content["progress"])
