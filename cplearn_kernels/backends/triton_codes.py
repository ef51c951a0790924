"""What the Triton kernels need to know of a dictionary: the form of its products, its tables on the device, its keys."""

from __future__ import annotations

import dataclasses
import functools

import torch

from .. import philox
from ..dictionary import Dictionary

# As triton_tiles.py numbers them.
KRONECKER, HADAMARD, RADEMACHER, PACKED = range(4)
# Hadamard blocks from this size on are transformed as H_A x H_B. Below, one product with the block's signs takes as
# many operations, and its tiles are those of independent codes.
SMALLEST_KRONECKER = 256
# Coordinates whose sign bits one Philox counter gives.
GROUP = 128


@dataclasses.dataclass(frozen=True)
class Codes:
    """A dictionary as kernel arguments.

    Attributes:
        form: one of KRONECKER, HADAMARD, RADEMACHER, PACKED.
        num_features, num_codes: f and c.
        block: F, the codes in a Hadamard block (1 for independent codes).
        width: K, the features after padding: the stride of a prepared row.
        groups: K / 128 where a product goes over several groups of coordinates, else 1.
        left: A, for blocks transformed as H_A x H_B with A * B = F; 16 otherwise.
        table: int32. Small Hadamard blocks: (F, words) the bits of the Sylvester matrix; packed: (c, words) the codes.
        words: columns of `table`.
        keys: the Philox key as two signed 32-bit integers.
        coordinates: int32 (K,), the coordinate at each place of a prepared row, or -1.
        positions: int32 (f,), the place of each coordinate in a Hadamard block.
    """

    form: int
    num_features: int
    num_codes: int
    block: int
    width: int
    groups: int
    left: int
    table: torch.Tensor
    words: int
    keys: tuple[int, int]
    coordinates: torch.Tensor
    positions: torch.Tensor

    @property
    def key(self) -> str:
        """The form and size by which configurations are kept."""
        if self.form == KRONECKER:
            return f"kronecker-{self.block}"
        return "codes-grouped" if self.groups > 1 else f"codes-{self.width}"


def codes_of(dictionary: Dictionary, device: torch.device) -> Codes:
    """The kernel arguments of a dictionary; those of generated ones are kept."""
    if dictionary.kind == "dense":
        width = _padded_width(dictionary.num_features)
        return Codes(
            PACKED, dictionary.num_features, dictionary.num_codes, 1, width, _groups(width), 16, dictionary.signs,
            dictionary.signs.shape[1], (0, 0), _coordinates(dictionary.num_features, width, str(device)),
            dictionary.signs,
        )  # fmt: skip
    return _generated(dictionary.kind, dictionary.num_features, dictionary.num_codes, dictionary.seed, str(device))


@functools.lru_cache(maxsize=32)
def _generated(kind: str, f: int, c: int, seed: int, device: str) -> Codes:
    keys = tuple(word - (1 << 32) if word >= 1 << 31 else word for word in philox.split_seed(seed))
    nothing = torch.zeros(1, dtype=torch.int32, device=device)
    if kind == "rademacher":
        width = _padded_width(f)
        return Codes(RADEMACHER, f, c, 1, width, _groups(width), 16, nothing, 0, keys, _coordinates(f, width, device),
                     nothing)  # fmt: skip
    block = 1 << (f - 1).bit_length()
    places = philox.injection(seed, f, block)
    positions = places.to(torch.int32).to(device)
    if block >= SMALLEST_KRONECKER:
        coordinates = torch.full((block,), -1, dtype=torch.int32)
        coordinates[places] = torch.arange(f, dtype=torch.int32)
        left = 1 << ((block.bit_length() - 1) // 2)
        return Codes(KRONECKER, f, c, block, block, 1, left, nothing, 0, keys, coordinates.to(device), positions)
    width = _padded_width(f)
    table = _sylvester_bits(places, block).to(device)
    return Codes(HADAMARD, f, c, block, width, 1, 16, table, table.shape[1], keys, _coordinates(f, width, device), positions)


@functools.lru_cache(maxsize=32)
def _coordinates(f: int, width: int, device: str) -> torch.Tensor:
    place = torch.arange(width, dtype=torch.int32)
    return torch.where(place < f, place, -1).to(device)


def _sylvester_bits(places: torch.Tensor, block: int) -> torch.Tensor:
    """int32 (F, ceil(f / 32)): bit k mod 32 of word k div 32 is the parity of `place of k & code`."""
    overlap = torch.arange(block)[:, None] & places[None, :]
    for shift in (4, 2, 1):
        overlap = overlap ^ (overlap >> shift)
    words = -(-places.numel() // 32)
    bits = torch.nn.functional.pad(overlap & 1, (0, words * 32 - places.numel())).unflatten(1, (words, 32))
    word = (bits << torch.arange(32)).sum(2)
    return torch.where(word < 1 << 31, word, word - (1 << 32)).to(torch.int32)


def _padded_width(f: int) -> int:
    if f <= GROUP:
        return max(32, 1 << (f - 1).bit_length())
    return -(-f // GROUP) * GROUP


def _groups(width: int) -> int:
    return -(-width // GROUP)
