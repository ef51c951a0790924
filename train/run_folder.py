"""The output directory of a run: the names of its files; made, checked for room, held by one process at a time."""

from __future__ import annotations

import fcntl
import shutil
from typing import IO

from torch import nn

from train.config import Config
from train.errors import InputError
from train.files import write_atomically

CONFIG_FILE = "config.json"
SUMMARY_FILE = "summary.json"
METRICS_FILE = "metrics.jsonl"
EMBEDDINGS_FILE = "embeddings.npz"
CHECKPOINT_FILE = "checkpoint.pt"
DIVERGED_FILE = "diverged.pt"
REPORT_FILE = "report.html"
LOCK_FILE = ".lock"
SPARE_BYTES = 32 << 20
"""Room for metrics, embeddings and report beside the checkpoints."""


def claim(config: Config) -> IO[bytes]:
    """Make the output directory and hold it until the returned file is closed or the process ends.

    Raises InputError if it cannot be written, is in use by another process, or holds a run that was not mentioned.
    """
    folder = config.output_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK_FILE).open("wb")
    except OSError as error:
        raise InputError(
            f"--output-dir was {folder}, expected a folder that can be written ({error.strerror})."
        ) from None
    try:
        # The system drops this lock with the process, however that ends; the file itself may stay.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise InputError(
            f"--output-dir {folder} is in use by another run, expected another folder, or to wait until "
            f"that run has ended."
        ) from None
    try:
        # A folder may let an empty file be made and have no room for a byte in it.
        write_atomically(folder / "write-test", lambda temporary: temporary.write_bytes(b"\0"))
        (folder / "write-test").unlink()
    except OSError as error:
        lock.close()
        raise InputError(
            f"--output-dir was {folder}, expected a folder that can be written ({error.strerror})."
        ) from None
    if (folder / CHECKPOINT_FILE).exists() and not (config.resume or config.overwrite):
        lock.close()
        raise InputError(
            f"--output-dir {folder} already holds a run, expected --resume to go on with it, --overwrite "
            f"to start again, or another folder."
        )
    return lock


def check_room(config: Config, method: nn.Module) -> None:
    """InputError unless the disk has room for what a run writes.

    A checkpoint is the weights and at most two numbers for each (Adam's); the next one is written beside the last.
    """
    state = sum(t.numel() * t.element_size() for t in method.state_dict().values())
    needed, free = 2 * 3 * state + SPARE_BYTES, shutil.disk_usage(config.output_dir).free
    if free < needed:
        raise InputError(
            f"--output-dir {config.output_dir} has {free / 1e6:.0f} MB of free disk, expected at least "
            f"the {needed / 1e6:.0f} MB that checkpoints and report of this run may take."
        )
