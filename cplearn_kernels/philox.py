"""Philox4x32-10, the counter-based generator behind every random dictionary, and its frozen bit layout.

Algorithm and known answers: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).

Layout, version 1 (frozen: a change needs a new version number):

* key      = (seed low 32 bits, seed high 32 bits)
* counter  = (index low, index high, k div 128, stream)
* index    = the code (Rademacher), the block (Hadamard signs) or the position (Hadamard injection)
* coordinate k is bit k mod 128 of the four output words, little-endian; a set bit means -1.

`csrc/philox.h` makes the same bits in C++.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch

BIT_LAYOUT_VERSION = 1

# Last counter word: keeps the three uses of one seed apart.
STREAM_RADEMACHER = 0
STREAM_HADAMARD_SIGNS = 1
STREAM_HADAMARD_INJECTION = 2

# Four 32-bit words, each an integer or an array of integers.
Words: TypeAlias = tuple[Any, Any, Any, Any]

_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF


def philox4x32(counter: Words, key: tuple[int, int], rounds: int = 10) -> Words:
    """Four 32-bit words of Philox4x32 for each counter.

    Args:
        counter: four words, each a Python int, a NumPy int64 array or a torch int64 tensor holding values in
            [0, 2^32); they broadcast against each other.
        key: two Python ints in [0, 2^32).
        rounds: 10 everywhere in this library.

    Returns:
        A tuple of four words of the same kind. Products wrap modulo 2^64 in int64, which leaves the bits that are
        used (the shift is followed by a mask) the same as for unsigned words.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        product_0 = c0 * _MULTIPLIER_0
        product_1 = c2 * _MULTIPLIER_1
        c0, c1, c2, c3 = (
            ((product_1 >> 32) & _MASK) ^ c1 ^ k0,
            product_1 & _MASK,
            ((product_0 >> 32) & _MASK) ^ c3 ^ k1,
            product_0 & _MASK,
        )
        k0 = (k0 + _WEYL_0) & _MASK
        k1 = (k1 + _WEYL_1) & _MASK
    return c0, c1, c2, c3


def split_seed(seed: int) -> tuple[int, int]:
    """The Philox key (low word, high word) of a seed in [0, 2^64)."""
    return seed & _MASK, (seed >> 32) & _MASK


def sign_bits(
    seed: int, stream: int, start: int, stop: int, num_features: int, device: torch.device | str | int | None = None
) -> torch.Tensor:
    """Sign bits of the vectors `start` … `stop - 1` of a stream.

    Returns:
        int64 tensor of shape `(stop - start, num_features)`, entries 0 (for +1) or 1 (for -1).
    """
    index = torch.arange(start, stop, dtype=torch.int64, device=device)[:, None]
    group = torch.arange((num_features + 127) // 128, dtype=torch.int64, device=device)[None, :]
    four_words = philox4x32((index & _MASK, index >> 32, group, stream), split_seed(seed))
    words = torch.stack(four_words, dim=-1).flatten(1)  # (vectors, 4 * groups): word w holds coordinates 32w … 32w + 31
    shifts = torch.arange(32, dtype=torch.int64, device=device)
    return ((words[:, :, None] >> shifts) & 1).flatten(1)[:, :num_features]


def injection(seed: int, num_features: int, num_positions: int) -> torch.Tensor:
    """The seeded random injection of `num_features` coordinates into `num_positions` places of a Hadamard block.

    Coordinate k goes to the place with the k-th smallest 64-bit random key (ties: the lower place first). It is the
    identity when both numbers are equal, because the codes of a block are then orthogonal as they are.

    Returns:
        int64 CPU tensor of shape `(num_features,)`.
    """
    if num_features == num_positions:
        return torch.arange(num_features)
    place = torch.arange(num_positions, dtype=torch.int64)
    low, high, _, _ = philox4x32((place & _MASK, place >> 32, 0, STREAM_HADAMARD_INJECTION), split_seed(seed))
    # Signed int64 order of (high with its top bit flipped, low) is the unsigned order of the 64-bit key.
    key = ((high ^ 0x80000000) << 32) | low
    return torch.sort(key, stable=True).indices[:num_features]
