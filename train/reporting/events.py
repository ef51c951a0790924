"""Metrics as TensorBoard events, for those who asked for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FOLDER = "tensorboard"


class Events:
    """Writes rows of metrics to `folder`/tensorboard, or nothing if not enabled; use as a context manager.

    A resumed run goes on at `first_step`; events behind it, of epochs that come again, are dropped by TensorBoard.
    """

    def __init__(self, folder: Path, enabled: bool, first_step: int) -> None:
        self.writer = None
        if enabled:
            from torch.utils.tensorboard import SummaryWriter  # an import of seconds

            self.writer = SummaryWriter(folder / FOLDER, purge_step=first_step + 1 if first_step else None)

    def add(self, row: dict[str, Any]) -> None:
        """One finished epoch: every number of the row but `step`, at that step."""
        if self.writer is not None:
            for name, value in row.items():
                if name != "step":
                    self.writer.add_scalar(name, value, row["step"])
            self.writer.flush()

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.writer is not None:
            self.writer.close()
