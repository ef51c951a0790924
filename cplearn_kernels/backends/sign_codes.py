"""What the backends for codes of ±1 share: which dictionaries they serve, and the places of coordinates in a block."""

from __future__ import annotations

import torch

from .. import philox
from ..dictionary import Dictionary

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# What the kernels for GPUs are made for.
MAX_FEATURES, MAX_CODES = 8192, 1 << 30
# Scores that `assign` holds at a time on a GPU for more than the best code.
SCORES_AT_ONCE = 1 << 22


def unsupported(dictionary: Dictionary, max_features: int | None = None, max_codes: int | None = None) -> str | None:
    """Why a backend for ±1 codes cannot use those of `dictionary`, or None.

    A dense dictionary is served if all entries are ±1: `Dictionary.signs` then holds them packed to bits.
    """
    if dictionary.kind == "dense" and dictionary.signs is None:
        return "it serves a dense dictionary whose entries are all +1 or -1; this one has others"
    if max_features is not None and dictionary.num_features > max_features:
        return f"it serves up to {max_features} features, got {dictionary.num_features}"
    if max_codes is not None and dictionary.num_codes > max_codes:
        return f"it serves up to 2^{max_codes.bit_length() - 1} codes, got {dictionary.num_codes}"
    return None


def lacks_precision(dictionary: Dictionary) -> str | None:
    """Why a call that names no backend should not go to one with float32 logits, or None.

    With few features nothing averages the rounding of a float32 logit, and many equal codes share a row's mass: the
    gradient's error reaches 2e-5 there, where the library promises 1e-5. The backend "torch" uses float64 then.
    """
    return "float32 logits lack precision for 16 features and fewer" if dictionary.num_features <= 16 else None


def hadamard_places(num_features: int, seed: int, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor]:
    """(the place of each coordinate in a block, `(f,)`; the coordinate at each place, `(F,)`, or -1), int32."""
    block = 1 << (num_features - 1).bit_length()
    places = philox.injection(seed, num_features, block)
    coordinate_at = torch.full((block,), -1, dtype=torch.int32)
    coordinate_at[places] = torch.arange(num_features, dtype=torch.int32)
    return places.to(torch.int32).to(device), coordinate_at.to(device)
