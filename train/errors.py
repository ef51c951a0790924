"""The two ways a run ends early on purpose; both are printed as one sentence, without a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any


class InputError(Exception):
    """Something given by the user cannot be used: an option, a path, a data file, a checkpoint (exit status 2)."""

    exit_status = 2


class Diverged(Exception):
    """Training cannot go on because the loss or a gradient is not finite any more (exit status 1)."""

    exit_status = 1


def exit_status(work: Callable[[], Any]) -> int:
    """0 after the work of a command; after an InputError, said in one sentence on stderr, its exit status."""
    try:
        work()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 0
