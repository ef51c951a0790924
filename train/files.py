"""Files that are whole or not there: written beside their place, then renamed; JSON that is written and read so."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train.errors import InputError


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write(temporary path)`, then rename: readers see the old file or the new one, never a part of it."""
    temporary = path.with_name(path.name + ".part")
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            # Without this a power cut after the rename could leave a name without its bytes.
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Any, indent: int = 2) -> None:
    """Write plain values as JSON, atomically, with a line's end behind them."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def read_json(path: Path, expected: str = "a JSON object") -> dict[str, Any]:
    """The object in a JSON file; InputError, saying what was expected, if it is missing, damaged or no object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} could not be read ({type(error).__name__}), expected {expected}.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} held a JSON {type(content).__name__}, expected {expected}.")
    return content
