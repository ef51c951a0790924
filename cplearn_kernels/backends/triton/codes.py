"""What the Triton kernels need to know of a dictionary: the kind of its codes, small tables on the device, its keys."""

from __future__ import annotations

import dataclasses
import functools

import torch

from ... import philox
from ...dictionary import Dictionary
from . import tuning

# As kernels/sign_bits.py numbers them.
KRONECKER, HADAMARD, RADEMACHER, PACKED = range(4)
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
    def form(self) -> str:
        """The form and size of the products, by which configurations are kept."""
        if self.kind == KRONECKER:
            return f"kronecker-{self.block}"
        return "codes-grouped" if self.groups > 1 else f"codes-{self.width}"

    @property
    def words(self) -> int:
        """32-bit words of sign bits per code (per block for Kronecker products) in a table of a piece."""
        if self.kind == PACKED:
            return self.packed.shape[1]
        return self.block // 32 if self.kind == KRONECKER else 4 * self.groups


def codes_of(dictionary: Dictionary, device: torch.device) -> Codes:
    """The kernel arguments of a dictionary; what generated ones need on the device is kept."""
    largest = tuning.largest_block(tuning.architecture(device))
    generated = _generated(dictionary.kind, dictionary.num_features, dictionary.seed, largest, str(device))
    sizes = dict(num_codes=dictionary.num_codes, total_codes=dictionary.total_codes)
    if dictionary.kind == "dense":
        return dataclasses.replace(generated, **sizes, packed=dictionary.signs)
    return dataclasses.replace(generated, **sizes, first_index=dictionary.first_code // dictionary.block_size)


@functools.lru_cache(maxsize=32)
def _generated(kind: str, f: int, seed: int, largest_block: int, device: str) -> Codes:
    keys = tuple(word - (1 << 32) if word >= 1 << 31 else word for word in philox.split_seed(seed))
    nothing = torch.zeros(1, 1, dtype=torch.int32, device=device)
    width = max(32, 1 << (f - 1).bit_length()) if f <= GROUP else -(-f // GROUP) * GROUP
    place = torch.arange(width, dtype=torch.int32)
    coordinates = torch.where(place < f, place, -1).to(device)
    if kind != "hadamard":
        number = RADEMACHER if kind == "rademacher" else PACKED
        return Codes(number, f, 0, 0, 0, 1, width, -(-width // GROUP), 16, keys, coordinates, nothing, nothing, nothing)
    block = 1 << (f - 1).bit_length()
    places = philox.injection(seed, f, block)
    positions = places.to(torch.int32).to(device)
    if not SMALLEST_KRONECKER <= block <= largest_block:
        groups = -(-width // GROUP)
        sylvester = _sylvester_bits(places, block, 4 * groups).to(device)
        return Codes(HADAMARD, f, 0, 0, 0, block, width, groups, 16, keys, coordinates, positions, sylvester, nothing)
    inverse = torch.full((block,), -1, dtype=torch.int32)
    inverse[places] = torch.arange(f, dtype=torch.int32)
    left = 1 << ((block.bit_length() - 1) // 2)
    return Codes(KRONECKER, f, 0, 0, 0, block, block, 1, left, keys, inverse.to(device), positions, nothing, nothing)


def _sylvester_bits(places: torch.Tensor, block: int, words: int) -> torch.Tensor:
    """int32 (F, words): bit k mod 32 of word k div 32 is the parity of `place of k & code`."""
    table = torch.empty(block, words, dtype=torch.int32)
    for start in range(0, block, 128):
        overlap = torch.arange(start, min(start + 128, block))[:, None] & places[None, :]
        for shift in (8, 4, 2, 1):
            overlap = overlap ^ (overlap >> shift)
        bits = torch.nn.functional.pad(overlap & 1, (0, 32 * words - places.numel())).unflatten(1, (words, 32))
        word = (bits << torch.arange(32)).sum(2)
        table[start : start + 128] = torch.where(word < 1 << 31, word, word - (1 << 32))
    return table
