"""What the Triton kernels need to know of a dictionary: the kind of its codes, small tables on the device, its keys."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch

from ... import bits, philox
from ...dictionary import Dictionary
from .. import sign_codes
from . import tuning
from .kernels.constants import HADAMARD, KRONECKER, PACKED, RADEMACHER

# Hadamard blocks from this size on are transformed as H_A x H_B, up to the one whose tile of both views still fits the
# registers (tuning.largest_block). Below, one product with the block's codes takes about as long; above, the
# codes are treated as independent ones.
SMALLEST_KRONECKER = 256
# Coordinates whose sign bits one Philox counter gives.
GROUP = 128


@dataclasses.dataclass(frozen=True)
class Codes:
    """A dictionary, or a range of its codes, as kernel arguments.

    Attributes:
        kind: KRONECKER or HADAMARD (blocks transformed, or taken code by code), RADEMACHER, PACKED.
        num_features, num_codes: f, and how many codes there are here.
        total_codes: c, the codes of the whole dictionary.
        first_index: what Philox counts for code 0: the range's first block (Hadamard) or code (Rademacher); 0 for
            PACKED, whose codes lie in memory.
        block: F, the codes in a Hadamard block (1 for independent codes).
        width: K, the features after padding: the stride of a prepared row.
        groups: K / 128 where a product goes over several groups of coordinates, else 1.
        left: A, for blocks transformed as H_A x H_B with A * B = F; 16 otherwise.
        keys: the Philox key as two signed 32-bit integers.
        coordinates: int32 (K,), the coordinate at each place of a prepared row, or -1.
        positions: int32 (f,), the place of each coordinate in a Hadamard block.
        sylvester: int32 (F, 4 * groups), for Hadamard blocks taken code by code: their bits before the signs.
        packed: int32 (c, words), the codes of a dense dictionary; one element otherwise.
    """

    kind: int
    num_features: int
    num_codes: int
    total_codes: int
    first_index: int
    block: int
    width: int
    groups: int
    left: int
    keys: tuple[int, int]
    coordinates: torch.Tensor
    positions: torch.Tensor
    sylvester: torch.Tensor
    packed: torch.Tensor

    @property
    def transformed(self) -> bool:
        """Whether products are transforms of whole blocks."""
        return bool(self.kind == KRONECKER.value)

    @property
    def given(self) -> bool:
        """Whether the bits of the codes lie in memory."""
        return bool(self.kind == PACKED.value)

    @property
    def form(self) -> str:
        """The form and size of the products, by which configurations are kept."""
        if self.transformed:
            return f"kronecker-{self.block}"
        return "codes-grouped" if self.groups > 1 else f"codes-{self.width}"

    @property
    def words(self) -> int:
        """32-bit words of sign bits per code (per block for Kronecker products) in a table of a piece."""
        if self.given:
            return self.packed.shape[1]
        return self.block // 32 if self.transformed else 4 * self.groups


def codes_of(dictionary: Dictionary, device: torch.device) -> Codes:
    """The kernel arguments of a dictionary; what generated ones need on the device is kept."""
    largest = tuning.largest_block(tuning.architecture(device))
    generated = _generated(dictionary.kind, dictionary.num_features, dictionary.seed, largest, str(device))
    sizes: dict[str, Any] = {"num_codes": dictionary.num_codes, "total_codes": dictionary.total_codes}
    if dictionary.signs is not None:
        return dataclasses.replace(generated, **sizes, packed=dictionary.signs)
    return dataclasses.replace(generated, **sizes, first_index=dictionary.first_code // dictionary.block_size)


@functools.lru_cache(maxsize=32)
def _generated(kind: str, f: int, seed: int, largest_block: int, device: str) -> Codes:
    key0, key1 = (bits.signed(word, 32) for word in philox.split_seed(seed))
    keys = key0, key1
    nothing = torch.zeros(1, 1, dtype=torch.int32, device=device)
    width = max(32, 1 << (f - 1).bit_length()) if f <= GROUP else -(-f // GROUP) * GROUP
    place = torch.arange(width, dtype=torch.int32)
    coordinates = torch.where(place < f, place, -1).to(device)
    if kind != "hadamard":
        number = RADEMACHER.value if kind == "rademacher" else PACKED.value
        return Codes(number, f, 0, 0, 0, 1, width, -(-width // GROUP), 16, keys, coordinates, nothing, nothing, nothing)
    block = 1 << (f - 1).bit_length()
    places, coordinate_at = sign_codes.hadamard_places(f, seed, "cpu")
    positions, number = places.to(device), HADAMARD.value
    if not SMALLEST_KRONECKER <= block <= largest_block:
        groups = -(-width // GROUP)
        sylvester = _sylvester_bits(places, block, 4 * groups).to(device)
        return Codes(number, f, 0, 0, 0, block, width, groups, 16, keys, coordinates, positions, sylvester, nothing)
    left, coordinates = 1 << ((block.bit_length() - 1) // 2), coordinate_at.to(device)
    return Codes(KRONECKER.value, f, 0, 0, 0, block, block, 1, left, keys, coordinates, positions, nothing, nothing)


def _sylvester_bits(places: torch.Tensor, block: int, words: int) -> torch.Tensor:
    """int32 (F, words): bit k mod 32 of word k div 32 is the parity of `place of k & code`."""
    table = torch.empty(block, words, dtype=torch.int32)
    for start in range(0, block, 128):
        overlap = torch.arange(start, min(start + 128, block))[:, None] & places[None, :]
        table[start : start + 128] = bits.packed(bits.parity(overlap), words)
    return table
