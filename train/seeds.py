"""Seeds of a run: one for each use, all from the configuration's."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, purpose: str, index: int = 0) -> int:
    """A 63-bit seed for one use, unrelated to that of any other purpose or index."""
    digest = hashlib.sha256(f"{seed} {purpose} {index}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
